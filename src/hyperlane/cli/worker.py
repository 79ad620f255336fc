"""`hyperlane worker`: lend this machine's device to a head."""

from __future__ import annotations

from hyperlane.cli.command import command
from hyperlane.cli.flags import CommonFlags, WorkerFlags


@command
def worker(*, flags: WorkerFlags, common: CommonFlags) -> None:
    """Lend this machine's device to a head.

    A worker holds layers of a model and computes them; start one on every machine, then name them to
    `hyperlane serve MODEL --worker HOST:PORT`.

    [bold]Examples[/bold]

    hyperlane worker

    hyperlane worker --listen 192.168.1.20:7420 --insecure --memory 6GiB
    """
    from hyperlane.node import run_worker

    run_worker(flags.resolve(common))
