"""A process that writes one kind of file and is killed at every step of it, over and over; run by its test.

For each step a fresh folder gets an old content, a forked child writes the new one and dies on the way, and then what
is there is read and written once more. The steps: every call that changes the file system (an audit hook kills before
it), and every length that a file may have when its writer dies (RLIMIT_FSIZE, whose signal kills within a write).
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hyperlane.cluster.identity import HeadIdentity
from hyperlane.cluster.planner.curve import Curve
from hyperlane.cluster.profile.profiler import ProfileShelf
from hyperlane.cluster.profile.shape import DeviceProfile
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.cluster.trust.token_store import TokenStore
from hyperlane.models.digests import DigestCache, FileState
from hyperlane.models.kept_bytes import keep
from hyperlane.models.ranges import TensorPlace, start_digest
from hyperlane.models.weights import TensorInfo
from hyperlane.store import partial, pieces
from hyperlane.store.cache import Cache
from hyperlane.store.pieces import pieces_of
from hyperlane.store.ready_file import NewTensor
from hyperlane.store.ready_store import ReadyStore
from hyperlane.store.tensor_store import TensorStore

CHANGES = {"os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "os.chmod", "os.utime", "open"}
LENGTHS = (0, 1, 5, 12, 40, 100, 400, 1500, 4000)
EVERY_LENGTH = (*range(80), *range(80, 1 << 10, 97), *range(1 << 10, 1 << 13, 997))


@dataclass(frozen=True, slots=True)
class Writer:
    """`write(folder, 1)` writes the old content, `write(folder, 2)` the new one; `read` tells which is there."""

    write: Callable[[Path, int], None]
    read: Callable[[Path], int | None]


# --- what is written -------------------------------------------------------------------------------------------


def write_epoch(folder: Path, number: int) -> None:
    identity = HeadIdentity(folder)
    assert identity.next_epoch().counter == number
    identity.close()


def read_epoch(folder: Path) -> int:
    identity = HeadIdentity(folder)
    counter = identity.next_epoch().counter
    identity.close()
    # The number is used up by asking: put it back as it was.
    (folder / "head-0.json").write_text(f'{{"head": "{identity.head.hex()}", "counter": {counter - 1}}}')
    return counter - 1


def write_token(folder: Path, number: int) -> None:
    TokenStore(folder / "tokens.json").create(bytes(32), (), lifetime_s=60.0, uses=number, now=0.0)


def read_token(folder: Path) -> int:
    uses = [record.uses for record in TokenStore(folder / "tokens.json").all()]
    assert uses in ([1], [1, 2], [1, 2, 2])
    return uses[-1]


def write_trust(folder: Path, number: int) -> None:
    if number == 2:
        HeadTrust(folder / "trust").local_worker()


def read_trust(folder: Path) -> int:
    trust = HeadTrust(folder / "trust")
    again = HeadTrust(folder / "trust")
    assert trust.credentials.cluster == again.credentials.cluster
    trust.local_worker()
    return 2


ONE = Curve(((1, 1e-3), (2, 2e-3)))


def profile_of(number: int) -> DeviceProfile:
    return DeviceProfile(ONE, ONE, ONE, ONE, float(number), 0, 0, number)


def write_profile(folder: Path, number: int) -> None:
    ProfileShelf(folder / "profiles").save("key", profile_of(number))


def read_profile(folder: Path) -> int | None:
    profile = ProfileShelf(folder / "profiles").load("key")
    return next((number for number in (1, 2) if profile == profile_of(number)), None)


def write_limit(folder: Path, number: int) -> None:
    Cache(folder).set_limit(number * 123_456_789_012)


def read_limit(folder: Path) -> int | None:
    limit = Cache(folder).limit
    return None if limit is None else limit // 123_456_789_012


def write_kept(folder: Path, number: int) -> None:
    keep(folder / "kept", bytes([number]) * 5000)


def read_kept(folder: Path) -> int:
    data = (folder / "kept").read_bytes()
    assert data == bytes(data[:1]) * 5000
    return data[0]


STATE = FileState("/model.gguf", 1, 2, 3)


def write_digests(folder: Path, number: int) -> None:
    DigestCache(folder / "digests").save(STATE, {"data": f"{number:064x}"}, settled=True)


def read_digests(folder: Path) -> int | None:
    known = DigestCache(folder / "digests").load(STATE).get("data")
    return None if known is None else int(known, 16)


def write_ready(folder: Path, number: int) -> None:
    tensor = NewTensor("norm", np.full(700, number, np.float32))
    ReadyStore(folder).get_or_make(f"unit-{number}", lambda: ([tensor], "a note"))


def read_ready(folder: Path) -> int:
    store, found = ReadyStore(folder), 0
    for number in (1, 2):
        unit = store.get(f"unit-{number}")
        if unit is not None:
            span = unit.tensors[0].span
            data = np.fromfile(unit.data, np.uint8)[span.offset : span.offset + span.length].view(np.float32)
            assert (data == number).all()
            found = number
    return found


PIECE_BYTES = 1000
MODEL = "ab" * 32


def place_of(number: int) -> tuple[TensorPlace, bytes]:
    data = bytes([number]) * 2500
    info = TensorInfo(f"tensor-{number}", (2500,), "F32", 2500)
    digest = start_digest(info)
    digest.update(data)
    return TensorPlace(info, 0, 64, digest.hexdigest()), data


def write_tensor(folder: Path, number: int) -> None:
    store, (place, data) = TensorStore(folder), place_of(number)
    if store.find(MODEL, place) is not None:
        return
    part = store.partial(MODEL, place)
    assert part is not None
    for piece in pieces_of(place.info.name, place.info.nbytes):
        if piece.index not in part.done:
            part.write(piece, data[piece.offset : piece.offset + piece.length])
    if part.digest() != place.digest:
        part.restart()
        part.close()
        write_tensor(folder, number)
        return
    part.publish(part.digest())
    store.use(MODEL, "name")


def read_tensor(folder: Path) -> int:
    found = 0
    for number in (1, 2):
        place, data = place_of(number)
        path = TensorStore(folder).find(MODEL, place)
        if path is not None:
            assert path.read_bytes() == data
            found = number
    return found


WRITERS = {
    "epoch": Writer(write_epoch, read_epoch),
    "tokens": Writer(write_token, read_token),
    "trust": Writer(write_trust, read_trust),
    "profile": Writer(write_profile, read_profile),
    "cache limit": Writer(write_limit, read_limit),
    "kept bytes": Writer(write_kept, read_kept),
    "digests": Writer(write_digests, read_digests),
    "ready weights": Writer(write_ready, read_ready),
    "tensors": Writer(write_tensor, read_tensor),
}


# --- who is killed ---------------------------------------------------------------------------------------------


def killed_before_a_change(nth: int) -> None:
    left = nth

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event not in CHANGES or (event == "open" and not writes(arguments)):
            return
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    sys.addaudithook(hook)


def writes(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


def killed_at_a_length(length: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, length))


def dies(arm: Callable[[int], None], step: int, writer: Writer) -> bool:
    """One child, and what it left; whether it died."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        writer.write(folder, 1)
        child = os.fork()
        if child == 0:
            try:
                arm(step)
                writer.write(folder, 2)
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or status == 0, f"step {step}: the writer failed by itself"
        found = writer.read(folder)
        assert found in (1, 2), f"step {step}: neither the old nor the new content: {found}"
        assert os.WIFSIGNALED(status) or found == 2
        if found == 1:
            writer.write(folder, 2)
            assert writer.read(folder) == 2, f"step {step}: cannot be written any more"
        return os.WIFSIGNALED(status)


def main() -> None:
    partial.PIECE_BYTES = pieces.PIECE_BYTES = PIECE_BYTES
    lengths = EVERY_LENGTH if "--every-length" in sys.argv else LENGTHS
    for name, writer in WRITERS.items():
        print(f"{name}: ", end="", flush=True)
        step = 0
        while dies(killed_before_a_change, step, writer):
            step += 1
        deaths = sum(dies(killed_at_a_length, length, writer) for length in lengths)
        print(f"killed before {step} changes and within {deaths} writes", flush=True)
        assert step >= 2
        assert deaths >= 2


if __name__ == "__main__":
    main()
