"""Tensors over gRPC on loopback: whole, verified, resumed, from several sources, each failure by name."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import grpc
import numpy as np
import pytest

from hyperlane.cluster.background import BackgroundLoop
from hyperlane.cluster.layers import dispatch as dispatch_module
from hyperlane.cluster.layers.dispatch import SourceKind
from hyperlane.cluster.layers.fetcher import LayerFetcher
from hyperlane.cluster.layers.server import TensorService, start_server
from hyperlane.cluster.layers.shelves import FileShelf, StoreShelf
from hyperlane.cluster.layers.sources import HubSource, ServerSource
from hyperlane.core import Address
from hyperlane.errors import LoadFailed, TransferError
from hyperlane.models.ranges import TensorPlace, start_digest
from hyperlane.models.weights import TensorInfo
from hyperlane.store import partial as partial_module
from hyperlane.store import pieces
from hyperlane.store.tensor_store import TensorStore, map_tensor

TOKEN, MODEL = "secret", "fe" * 32
PIECE = 1 << 16
SIZES = {"one": 1, "small": 1000, "exact": PIECE, "large": 5 * PIECE + 17, "last": 3 * PIECE}


class Memory:
    """A model of random bytes; `wrong`: names whose bytes it changes."""

    def __init__(self, wrong=()) -> None:
        rng = np.random.default_rng(1)
        self.right = {name: rng.integers(0, 256, size, np.uint8) for name, size in SIZES.items()}
        self.tensors = {name: data ^ np.uint8(name in wrong) for name, data in self.right.items()}

    def names(self):
        return tuple(self.tensors)

    def info(self, name):
        return TensorInfo(name, (SIZES[name],), "F32", SIZES[name]) if name in SIZES else None

    def read(self, name):
        return self.tensors[name]

    def places(self) -> dict[str, TensorPlace]:
        made = {}
        for name, data in self.right.items():
            digest = start_digest(self.info(name))
            digest.update(data)
            made[name] = TensorPlace(self.info(name), 0, 0, digest.hexdigest())
        return made


class Watched(TensorService):
    """Notes what is asked; `failures`: so many calls end with an error; `stop_after`: all do after so many."""

    def __init__(self, shelf, token: str = TOKEN, *, failures: int = 0, stop_after: int = 1 << 30) -> None:
        super().__init__(shelf, token)
        self.failures = failures
        self.stop_after = stop_after
        self.asked: list[tuple[str, int]] = []

    async def FetchRange(self, request, context):  # noqa: N802 (the proto's)
        self.asked.append((request.name, request.offset))
        if self.failures or len(self.asked) > self.stop_after:
            self.failures -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the cable")
        async for message in super().FetchRange(request, context):
            yield message


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch):
    for module in (pieces, partial_module):
        monkeypatch.setattr(module, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(dispatch_module, "FIRST_REST_S", 0.01)


@pytest.fixture
def serve():
    """Starts a service in a loop of its own thread; returns its address."""
    loop, servers = BackgroundLoop("test-tensors"), []

    def start(service: TensorService) -> Address:
        server, address = loop.run(start_server(service, Address("127.0.0.1", 0)))
        servers.append(server)
        return address

    yield start
    for server in servers:
        loop.run(server.stop(None))
    loop.close()


def at(address: Address, kind: SourceKind = SourceKind.HEAD, token: str = TOKEN) -> ServerSource:
    return ServerSource(kind, address, grpc.insecure_channel(str(address)), MODEL, token)


@pytest.fixture
def fetcher(tmp_path):
    """Makes transfers into one store; closes them at the end."""
    made = []

    def make(*sources, places=None, store=None) -> LayerFetcher:
        made.append(LayerFetcher(MODEL, places or Memory().places(), store or TensorStore(tmp_path), sources))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch-")]


def fetch_all(transfer: LayerFetcher, names=tuple(SIZES)) -> None:
    transfer.expect(names)
    for name in names:
        assert map_tensor(transfer.wait(name, lambda moved: None)).tobytes() == Memory().right[name].tobytes()


def test_every_tensor_arrives_as_it_is_and_no_byte_twice(serve, fetcher):
    service = Watched(FileShelf(MODEL, Memory()))
    transfer = fetcher(at(serve(service)))
    fetch_all(transfer)
    assert len(service.asked) == len(set(service.asked)) == 12
    assert transfer.moved().sources == (("head", sum(SIZES.values())),)


def test_a_second_transfer_asks_nobody_for_anything(serve, fetcher):
    fetch_all(fetcher(at(serve(Watched(FileShelf(MODEL, Memory()))))))
    service = Watched(FileShelf(MODEL, Memory()))
    transfer = fetcher(at(serve(service)))
    assert transfer.missing_bytes(tuple(SIZES)) == 0
    fetch_all(transfer)
    assert service.asked == []
    assert transfer.moved().sources == (("cache", sum(SIZES.values())),)


def test_only_what_is_asked_for_is_fetched(serve, fetcher):
    service = Watched(FileShelf(MODEL, Memory()))
    transfer = fetcher(at(serve(service)))
    fetch_all(transfer, ("small", "exact"))
    assert {name for name, _ in service.asked} == {"small", "exact"}


@pytest.mark.parametrize("stop_after", [1, 3, 6, 11])
def test_a_transfer_that_ended_anywhere_goes_on_without_asking_for_a_piece_again(serve, fetcher, stop_after):
    first = Watched(FileShelf(MODEL, Memory()), stop_after=stop_after)
    broken = fetcher(at(serve(first)))
    with pytest.raises(TransferError, match="cable"):
        fetch_all(broken)
    broken.close()
    second = Watched(FileShelf(MODEL, Memory()))
    transfer = fetcher(at(serve(second)))
    fetch_all(transfer)
    assert not set(first.asked[:stop_after]) & set(second.asked)
    assert len(second.asked) == 12 - stop_after


def test_a_source_that_fails_now_and_then_is_asked_again(serve, fetcher):
    fetch_all(fetcher(at(serve(Watched(FileShelf(MODEL, Memory()), failures=3)))))


def test_a_source_that_is_gone_is_left_for_another(serve, fetcher):
    transfer = fetcher(at(Address("127.0.0.1", 9)), at(serve(Watched(FileShelf(MODEL, Memory())))))
    fetch_all(transfer)


def test_nobody_at_the_address_is_told_with_the_address(fetcher):
    transfer = fetcher(at(Address("127.0.0.1", 9)))
    with pytest.raises(TransferError, match=r"tensor 'small' cannot be had: .*127\.0\.0\.1:9"):
        transfer.wait("small", lambda moved: None)


def test_a_wrong_token_and_another_model_are_refused(serve, fetcher):
    address = serve(Watched(FileShelf(MODEL, Memory())))
    guessing = fetcher(at(address, token="guess"))
    with pytest.raises(TransferError, match="another head"):
        guessing.wait("small", lambda moved: None)
    guessing.close()
    other = serve(Watched(FileShelf("00" * 32, Memory())))
    with pytest.raises(TransferError, match="another model"):
        fetcher(at(other)).wait("small", lambda moved: None)


# --- peers ---------------------------------------------------------------------------------------------------


def test_a_peer_gives_what_its_cache_holds_and_the_head_the_rest(serve, fetcher, tmp_path):
    theirs = TensorStore(tmp_path / "theirs")
    fetch_all(fetcher(at(serve(Watched(FileShelf(MODEL, Memory())))), store=theirs), ("large", "exact"))
    peer, head = Watched(StoreShelf(theirs.root), ""), Watched(FileShelf(MODEL, Memory()))
    transfer = fetcher(at(serve(peer), SourceKind.PEER, ""), at(serve(head)), store=TensorStore(tmp_path / "mine"))
    fetch_all(transfer)
    assert {name for name, _ in peer.asked} <= {"large", "exact"}
    assert dict(transfer.moved().sources).keys() == {"peer", "head"}


def test_a_liar_is_found_by_the_hash_and_left_out(serve, fetcher):
    liar, head = Watched(FileShelf(MODEL, Memory(wrong=SIZES)), ""), Watched(FileShelf(MODEL, Memory()))
    transfer = fetcher(at(serve(liar), SourceKind.PEER, ""), at(serve(head)))
    fetch_all(transfer)
    asked = len(liar.asked)
    assert 0 < asked < 12
    assert sum(length for _, length in transfer.moved().sources) == sum(SIZES.values())


def test_wrong_bytes_from_everybody_are_an_error_that_names_the_liar(serve, fetcher):
    transfer = fetcher(at(serve(Watched(FileShelf(MODEL, Memory(wrong=["large"]))))))
    with pytest.raises(TransferError, match=r"'large' cannot be had: the head's tensor server .* hash differs"):
        transfer.wait("large", lambda moved: None)


def test_bytes_on_disk_that_went_bad_are_fetched_again(serve, fetcher, tmp_path):
    broken = fetcher(at(serve(Watched(FileShelf(MODEL, Memory()), stop_after=3))))
    with pytest.raises(TransferError):
        fetch_all(broken, ("large",))
    broken.close()
    part = next(tmp_path.rglob("*.part"))
    part.write_bytes(b"?" + part.read_bytes()[1:])
    fetch_all(fetcher(at(serve(Watched(FileShelf(MODEL, Memory()))))), ("large",))


def test_two_processes_of_a_machine_fetch_a_tensor_once(serve, fetcher, tmp_path):
    service = Watched(FileShelf(MODEL, Memory()))
    address = serve(service)
    other = TensorStore(tmp_path).partial(MODEL, Memory().places()["large"])
    transfer = fetcher(at(address))
    transfer.expect(["large"])
    with pytest.raises(GivenUpError):
        transfer.wait("large", give_up)
    for piece in pieces.pieces_of("large", SIZES["large"]):
        other.write(piece, Memory().right["large"][piece.offset : piece.offset + piece.length].data)
    other.publish(other.digest())
    fetch_all(transfer, ("large",))
    assert service.asked == []


# --- the hub -------------------------------------------------------------------------------------------------


class File:
    """A hub's file: all tensors one after another."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size, self.digest = data, len(data), ""
        self.read_bytes = 0
        self.closed = False

    def read(self, offset: int, length: int) -> bytes:
        self.read_bytes += length
        return self.data[offset : offset + length]

    def close(self) -> None:
        self.closed = True


def hub() -> tuple[File, dict[str, TensorPlace]]:
    memory, data, places = Memory(), b"header", {}
    for name, place in memory.places().items():
        places[name] = replace(place, offset=len(data), digest="")
        data += memory.right[name].tobytes()
    return File(data), places


def test_what_only_the_hub_has_comes_from_it_as_ranges_and_stays(fetcher):
    file, places = hub()
    transfer = fetcher(HubSource("the hub", [file], places), places=places)
    fetch_all(transfer, ("small", "last"))
    assert file.read_bytes == SIZES["small"] + SIZES["last"]
    transfer.close()
    assert file.closed
    again = fetcher(HubSource("the hub", [file], places), places=places)
    fetch_all(again, ("small", "last"))
    assert file.read_bytes == SIZES["small"] + SIZES["last"]


def test_the_hub_is_spared_while_the_head_has_the_file(serve, fetcher):
    file, _ = hub()
    places = {name: replace(place, offset=hub()[1][name].offset) for name, place in Memory().places().items()}
    transfer = fetcher(
        HubSource("the hub", [file], places), at(serve(Watched(FileShelf(MODEL, Memory())))), places=places
    )
    fetch_all(transfer)
    assert file.read_bytes == 0


# --- a model that only the hub has, and peers that took it from there ----------------------------------------


@pytest.fixture
def peer(serve, fetcher, tmp_path):
    """A worker that has some tensors; `wrong`: and says, as if they were right, that their bytes are others."""
    count = iter(range(9))

    def make(*names: str, wrong: bool = False) -> Watched:
        theirs = TensorStore(tmp_path / f"peer-{next(count)}")
        memory = Memory(wrong=names if wrong else ())
        places = {name: replace(place, digest="") for name, place in Memory().places().items()}
        transfer = fetcher(at(serve(Watched(FileShelf(MODEL, memory)))), store=theirs, places=places)
        for place in places.values():
            if place.info.name in names:
                part = theirs.partial(MODEL, place)
                for piece in pieces.pieces_of(place.info.name, place.info.nbytes):
                    part.write(
                        piece, memory.read(place.info.name)[piece.offset : piece.offset + piece.length].tobytes()
                    )
                part.publish(part.digest())
        transfer.close()
        return Watched(StoreShelf(theirs.root), "")

    return make


def test_what_a_peer_took_from_the_hub_comes_from_the_peer_and_the_rest_from_the_hub(serve, fetcher, peer):
    file, places = hub()
    holder = peer("large", "last")
    transfer = fetcher(at(serve(holder), SourceKind.PEER, ""), HubSource("the hub", [file], places), places=places)
    fetch_all(transfer)
    assert dict(transfer.moved().sources)["peer"] == SIZES["large"] + SIZES["last"]
    assert file.read_bytes == sum(SIZES.values()) - SIZES["large"] - SIZES["last"]


def test_bytes_that_are_not_what_their_peer_says_come_from_the_hub_instead(serve, fetcher, peer, caplog):
    file, places = hub()
    holder = peer("large")
    honest = holder._shelf.held(MODEL)
    holder._shelf.held = lambda _model: {name: "ab" * 32 for name in honest}
    transfer = fetcher(at(serve(holder), SourceKind.PEER, ""), HubSource("the hub", [file], places), places=places)
    fetch_all(transfer, ("large",))
    assert holder.asked
    assert file.read_bytes == SIZES["large"]
    assert "it comes from the hub" in caplog.text


def test_peers_that_do_not_agree_are_not_asked(serve, fetcher, peer):
    file, places = hub()
    holders = peer("large"), peer("large", "last", wrong=True)
    sources = [at(serve(holder), SourceKind.PEER, "") for holder in holders]
    transfer = fetcher(*sources, HubSource("the hub", [file], places), places=places)
    fetch_all(transfer, ("large",))
    assert not [holder.asked for holder in holders if holder.asked]
    assert file.read_bytes == SIZES["large"]


def test_what_a_head_has_read_is_not_a_peers_to_say(serve, fetcher, peer):
    liar = peer("large", wrong=True)
    head = Watched(FileShelf(MODEL, Memory()))
    transfer = fetcher(at(serve(liar), SourceKind.PEER, ""), at(serve(head)))
    fetch_all(transfer, ("large",))


# --- ends ----------------------------------------------------------------------------------------------------


class GivenUpError(Exception):
    pass


def give_up(_moved) -> None:
    raise GivenUpError


def test_a_load_that_is_given_up_ends_the_wait(serve, fetcher):
    class Stuck(TensorService):
        async def FetchRange(self, request, context):  # noqa: N802 (the proto's)
            await asyncio.Event().wait()
            yield

    with pytest.raises(GivenUpError):
        fetcher(at(serve(Stuck(FileShelf(MODEL, Memory()), TOKEN)))).wait("small", give_up)


def test_a_disk_that_cannot_be_written_is_told(serve, fetcher, tmp_path):
    (tmp_path / "file").touch()
    transfer = fetcher(at(serve(Watched(FileShelf(MODEL, Memory())))), store=TensorStore(tmp_path / "file" / "below"))
    with pytest.raises((LoadFailed, OSError)):
        transfer.wait("small", lambda moved: None)


def test_a_tensor_that_the_stage_was_not_told_of_is_named(fetcher):
    with pytest.raises(TransferError, match="'nope'"):
        fetcher().wait("nope", lambda moved: None)
