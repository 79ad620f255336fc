"""Transfers of made-up tensors between processes: what tests and benchmarks of the layer store start and read.

`python -m hyperlane.testing.layer_transfer STORE TENSORS HOST:PORT … [--trust FOLDER --node HEX]` fetches all tensors
of the file TENSORS from peers into STORE and prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hyperlane.cluster.layers.dispatch import SourceKind
from hyperlane.cluster.layers.fetcher import LayerFetcher
from hyperlane.cluster.layers.sources import ServerSource
from hyperlane.cluster.trust import grpc_tls
from hyperlane.cluster.trust.folder_trust import FolderTrust
from hyperlane.core import Address, NodeId
from hyperlane.models.ranges import TensorPlace, start_digest
from hyperlane.models.weights import TensorInfo
from hyperlane.store.pieces import pieces_of
from hyperlane.store.tensor_store import TensorStore
from hyperlane.wire.peer import NodeRole

MODEL = "8b" * 32
BLOCK, BLOCK_BYTES = 32, 18
"""Of GGML's Q4_0: so many weights in so many bytes."""

_LAYER_8B = {
    "attn_q": (4096, 4096),
    "attn_k": (1024, 4096),
    "attn_v": (1024, 4096),
    "attn_output": (4096, 4096),
    "ffn_gate": (14336, 4096),
    "ffn_up": (14336, 4096),
    "ffn_down": (4096, 14336),
}


@dataclass(frozen=True, slots=True)
class Transferred:
    """What a transfer was: `seconds` from the first request to the last verified tensor; bytes by kind of source."""

    seconds: float
    nbytes: int
    sources: dict[str, int]


def layers_of_8b(count: int) -> list[TensorInfo]:
    """The matrices of so many layers of Llama-3-8B's shape, at 4 bit."""
    return [
        TensorInfo(f"blk.{layer}.{name}.weight", shape, "Q4_0", shape[0] * shape[1] // BLOCK * BLOCK_BYTES)
        for layer in range(count)
        for name, shape in _LAYER_8B.items()
    ]


def fill(root: Path, infos: Iterable[TensorInfo]) -> list[TensorPlace]:
    """Put random tensors into a store, where a server finds them; where they lie, with their digests."""
    store, rng, places = TensorStore(root), np.random.default_rng(8), []
    for info in infos:
        data = rng.bytes(info.nbytes)
        digest = start_digest(info)
        digest.update(data)
        places.append(TensorPlace(info, 0, 0, digest.hexdigest()))
        part = store.partial(MODEL, places[-1])
        assert part is not None
        for piece in pieces_of(info.name, info.nbytes):
            part.write(piece, data[piece.offset : piece.offset + piece.length])
        part.publish(places[-1].digest)
    return places


def save_places(path: Path, places: Sequence[TensorPlace]) -> None:
    """Write what `main` reads."""
    path.write_text(json.dumps([asdict(place) for place in places]), encoding="utf-8")


def load_places(path: Path) -> list[TensorPlace]:
    """The opposite of `save_places`."""
    return [
        TensorPlace(TensorInfo(**{**one["info"], "shape": tuple(one["info"]["shape"])}), 0, 0, one["digest"])
        for one in json.loads(path.read_text(encoding="utf-8"))
    ]


def server_command(root: Path, listen: Address, trust: Path | None = None) -> list[str]:
    """A worker's tensor server over a store; it announces itself and ends when its standard input does."""
    command = [sys.executable, "-m", "hyperlane.cluster.layers.server", "store", str(root), "--listen", str(listen)]
    return command if trust is None else [*command, "--trust", str(trust)]


def fetch_command(
    store: Path, places: Path, peers: Sequence[Address], trust: Path | None = None, node: NodeId | None = None
) -> list[str]:
    """This module as a program; `node`: whom the peers' certificates name."""
    command = [sys.executable, "-m", "hyperlane.testing.layer_transfer", str(store), str(places), *map(str, peers)]
    return command if trust is None or node is None else [*command, "--trust", str(trust), "--node", node.hex()]


def read_result(line: str) -> Transferred:
    """What the program printed."""
    return Transferred(**json.loads(line))


def main() -> None:
    """Fetch, and say how it went."""
    parser = argparse.ArgumentParser(prog="hyperlane.testing.layer_transfer")
    parser.add_argument("store", type=Path)
    parser.add_argument("places", type=Path)
    parser.add_argument("peers", type=Address.parse, nargs="+")
    parser.add_argument("--trust", type=Path)
    parser.add_argument("--node", type=bytes.fromhex)
    asked = parser.parse_args()
    trust = FolderTrust(asked.trust) if asked.trust else None
    node = NodeId(asked.node) if asked.node else None
    places = {place.info.name: place for place in load_places(asked.places)}
    sources = [
        ServerSource(SourceKind.PEER, peer, grpc_tls.open_channel(peer, trust, NodeRole.WORKER, node), MODEL)
        for peer in asked.peers
    ]
    fetcher = LayerFetcher(MODEL, places, TensorStore(asked.store), sources)
    began_s = time.perf_counter()
    try:
        fetcher.expect(list(places))
        for name in places:
            fetcher.wait(name, lambda _moved: None)
        moved = fetcher.moved()
    finally:
        seconds = time.perf_counter() - began_s
        fetcher.close()
    print(json.dumps(asdict(Transferred(seconds, moved.total, dict(moved.sources)))))


if __name__ == "__main__":
    main()
