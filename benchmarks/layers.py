"""How fast layers travel: tensors of Llama-3-8B's shape at 4 bit from one worker's cache into another's, encrypted.

    python benchmarks/layers.py [--layers 32] [--rate 1gbit] [--rounds 3]

Two machines of network namespaces on a switch, each on a cable that `tc` (tbf) bounds to the rate, one tensor server
and one fetching process, mutual TLS, every tensor verified. Each round fetches into an empty cache, then once more into
the full one. Root and Linux alone. Takes four times the layers' bytes of disk (0.12 GB a layer).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path

from hyperlane.bench.machine import describe_machine
from hyperlane.cluster.announce import Announcement
from hyperlane.cluster.trust import old_tls
from hyperlane.core import Address, NodeId
from hyperlane.testing.lan import Lan, missing
from hyperlane.testing.layer_transfer import (
    fetch_command,
    fill,
    layers_of_8b,
    read_result,
    save_places,
    server_command,
)
from hyperlane.testing.trust import TrustedPair
from hyperlane.values import size
from hyperlane.wire.peer import NodeRole

BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
PORT = 7422
TIMEOUT_S = 3600.0


def bytes_a_second(rate: str) -> float:
    """What `tc` calls a rate (`1gbit`), in bytes a second."""
    for unit, factor in BITS.items():
        if rate.endswith(unit):
            return float(rate.removesuffix(unit)) * factor / 8
    return float(size(rate))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rate", default="1gbit")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if missing():
        raise SystemExit(missing())
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="hyperlane-layers-") as name, Lan() as lan:
        folder = Path(name)
        pair = TrustedPair(folder / "trust")
        other = pair.credentials(NodeRole.WORKER, folder / "trust" / "other", b"o" * 16).file.parent
        save_places(folder / "tensors.json", fill(folder / "theirs", layers_of_8b(asked.layers)))
        environ = {**os.environ, **old_tls.VARIABLES}
        giver, taker = lan.host("giver", rate=asked.rate), lan.host("taker", rate=asked.rate)
        listen = Address(giver.address, PORT)
        server = giver.start(server_command(folder / "theirs", listen, folder / "trust" / "worker"), environ)
        assert server.stdout is not None
        address = Announcement.read(server.stdout.readline().encode()).address
        command = fetch_command(folder / "mine", folder / "tensors.json", [address], other, NodeId(b"w" * 16))
        rates, again = [], []
        for _ in range(asked.rounds):
            shutil.rmtree(folder / "mine", ignore_errors=True)
            moved = read_result(taker.run(command, environ, TIMEOUT_S))
            assert set(moved.sources) == {"peer"}
            rates.append(moved.nbytes / moved.seconds)
            second = read_result(taker.run(command, environ, TIMEOUT_S))
            again.append(sum(count for kind, count in second.sources.items() if kind != "cache"))
    share = [rate / bytes_a_second(asked.rate) for rate in rates]
    print(f"{moved.nbytes / 1e9:.2f} GB over {asked.rate}: median {statistics.median(rates) / 1e6:.1f} MB/s,")
    print(f"{statistics.median(share):.1%} of the link ({min(share):.1%} to {max(share):.1%} in {len(share)} rounds);")
    print(f"a second start fetched {max(again)} bytes")


if __name__ == "__main__":
    main()
