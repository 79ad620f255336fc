"""`hyperlane worker`: lend this machine's devices to a head."""

from __future__ import annotations

from hyperlane import config
from hyperlane.cli.command import command
from hyperlane.cli.flags import CommonFlags, WorkerFlags


@command
def worker(*, flags: WorkerFlags, common: CommonFlags) -> None:
    """Lend this machine's devices to a head.

    A worker holds layers of a model and computes them; start one on every machine. The first time it joins the
    cluster of the head whose `hyperlane serve` printed the token; from then on `hyperlane worker` alone is enough.
    With several GPUs, each gets a process, is a node of its own (box/cuda:0), and takes one use of the token.

    [bold]Examples[/bold]

    hyperlane worker --join TOKEN

    hyperlane worker --memory 6GiB

    hyperlane worker --devices all
    """
    from hyperlane.cluster.trust import old_tls

    old_tls.rule_out()  # before the next import brings gRPC
    from hyperlane.node import lend

    lend(flags.resolve(common), config.load(config.DiscoveryConfig, common.config), common.words())
