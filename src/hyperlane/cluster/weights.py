"""Where a worker's weights come from for one load: its own copy of the model, its cache, peers, the head, the hub."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hyperlane.cluster.layers.dispatch import SourceKind
from hyperlane.cluster.layers.fetcher import LayerFetcher
from hyperlane.cluster.layers.meter import Moved
from hyperlane.cluster.layers.sources import HubSource, PieceSource, ServerSource
from hyperlane.cluster.layers.stored_source import StoredSource
from hyperlane.cluster.trust import grpc_tls
from hyperlane.cluster.trust.trust import Trust
from hyperlane.core import StageSpec
from hyperlane.errors import HyperlaneError, LoadFailed, UnknownModel
from hyperlane.models import layout
from hyperlane.models.digests import DigestCache
from hyperlane.models.ranges import ByteRanges, RemoteFile, TensorPlace
from hyperlane.models.source import open_model
from hyperlane.models.weights import TensorSource
from hyperlane.stage.engine import Engine
from hyperlane.stage.host import LoadEngine
from hyperlane.stage.orders import LoadOrder, LoadProgress
from hyperlane.store import usage
from hyperlane.store.cache import Cache
from hyperlane.store.tensor_store import TensorStore
from hyperlane.wire.peer import NodeRole

FETCHING = "fetching weights"
"""The phase of a load in which tensors arrive; its unit is a byte."""


def holds_model(fingerprint: str, path: str, digests: DigestCache) -> bool:
    """Whether the file at `path` on this machine is that model."""
    if not path:
        return False
    try:
        with open_model(Path(path), digests) as file:
            return file.fingerprint == fingerprint
    except HyperlaneError:
        return False


OpenRanges = Callable[[RemoteFile], ByteRanges]
BuildEngine = Callable[[StageSpec, TensorSource, Callable[[LoadProgress], None]], Engine]


@dataclass(frozen=True, slots=True)
class WeightRoom:
    """What a worker needs to get weights: where it keeps them, whom it trusts, how it reads from the hub.

    `trust` None: everybody it fetches from is on this machine. `open_ranges` None: it does not ask the hub.
    `find_copy`: by fingerprint a whole model that was downloaded to this machine for another purpose.
    """

    digests: DigestCache
    store: TensorStore
    cache: Cache
    trust: Trust | None = None
    open_ranges: OpenRanges | None = None
    find_copy: Callable[[str], Path | None] = lambda _fingerprint: None


def engine_loader(room: WeightRoom, build: BuildEngine) -> LoadEngine:
    """How a worker loads: weights from wherever they are, kept from eviction for as long as an engine uses them."""

    def load(order: LoadOrder, progress: Callable[[LoadProgress], None]) -> Engine:
        model = order.spec.model.fingerprint
        loading = room.cache.hold(model, usage.LOADING)
        try:
            with open_weights(order, room, progress) as source:
                engine = build(order.spec, source, progress)
            weakref.finalize(engine, room.cache.hold(model, usage.RUNNING).release)
        finally:
            loading.release()
        room.cache.trim()
        return engine

    return load


@contextmanager
def open_weights(
    order: LoadOrder, room: WeightRoom, progress: Callable[[LoadProgress], None]
) -> Iterator[TensorSource]:
    """The stage's tensors, while the block lasts; arrays that were read stay valid after it.

    Raises:
        LoadFailed: the order names neither a file of that model nor anybody who has its tensors, or no room is left.

    """
    if order.weights.tensors:
        yield from _fetched(order, room, progress)
        return
    model = order.spec.model
    try:
        file = open_model(_own_file(order, room), room.digests)
    except UnknownModel as error:
        raise LoadFailed(f"this worker has no copy of {model.name}, and was named nobody who has: {error}") from error
    with file:
        if file.fingerprint != model.fingerprint:
            raise LoadFailed(f"{file.path} is another model than {model.name}, or was changed since it was planned")
        yield file


def _own_file(order: LoadOrder, room: WeightRoom) -> Path:
    """The file that the head named, as this machine sees it, else a copy that was downloaded here."""
    named = Path(order.weights.path_hint)
    if order.weights.path_hint and named.exists():
        return named
    return room.find_copy(order.spec.model.fingerprint) or named


def _fetched(order: LoadOrder, room: WeightRoom, progress: Callable[[LoadProgress], None]) -> Iterator[StoredSource]:
    """From this worker's cache and whoever else has the tensors."""
    model, places = order.spec.model, {place.info.name: place for place in order.weights.tensors}

    def tell(moved: Moved) -> None:
        progress(LoadProgress(FETCHING, moved.done, moved.total, moved.rate, moved.sources))

    fetcher = LayerFetcher(model.fingerprint, places, room.store, _sources(order, room, places))
    try:
        room.store.use(model.fingerprint, model.name)
        yield StoredSource(places, fetcher, tell, room.cache.make_room)
        tell(fetcher.moved())
    except OSError as error:
        raise LoadFailed(f"weights cannot be kept in {room.store.root}: {error.strerror or error}") from error
    finally:
        fetcher.close()


def _sources(order: LoadOrder, room: WeightRoom, places: Mapping[str, TensorPlace]) -> list[PieceSource]:
    weights, fingerprint = order.weights, order.spec.model.fingerprint
    found: list[PieceSource] = []
    for peer in weights.peers:
        trust = room.trust if peer.node is not None else None
        channel = grpc_tls.open_channel(peer.address, trust, NodeRole.WORKER, peer.node)
        found.append(ServerSource(SourceKind.PEER, peer.address, channel, fingerprint))
    if weights.server is not None:
        channel = grpc_tls.open_channel(weights.server, room.trust, NodeRole.HEAD)
        found.append(ServerSource(SourceKind.HEAD, weights.server, channel, fingerprint, weights.token))
    if weights.files and room.open_ranges is not None:
        files = [room.open_ranges(file) for file in weights.files]
        found.append(HubSource("the hub", files, places))
    return found


def stage_tensors(spec: StageSpec) -> list[str]:
    """The tensors that a stage reads, in the order in which it does."""
    units = [layout.layer_layout(spec.model, layer) for layer in range(spec.layers.first, spec.layers.last)]
    first = [layout.embedding_layout(spec.model)] if spec.is_first else []
    last = [layout.output_layout(spec.model)] if spec.is_last else []
    links = [unit for unit in layout.link_layouts(spec) if unit is not None]
    return list(dict.fromkeys(name for unit in (*first, *units, *last, *links) for name in unit.tensors))
