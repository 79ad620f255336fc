"""`hyperlane plan`: where a model's layers would go. Nothing is loaded."""

from __future__ import annotations

from typing import Annotated

import typer

from hyperlane.cli.command import command
from hyperlane.cli.flags import CommonFlags, ServeFlags
from hyperlane.cli.loading import LoadBars
from hyperlane.cli.terminal import progress_bars, write_json
from hyperlane.config import DiscoveryConfig, load


@command
def plan(
    *,
    model: Annotated[str, typer.Argument(help="name from `hyperlane models`, or the path of a GGUF file")],
    as_json: Annotated[bool, typer.Option("--json", help="print the plan as JSON")] = False,
    serving: ServeFlags,
    common: CommonFlags,
) -> None:
    """Show which layers would run where, without loading them.

    [bold]Examples[/bold]

    hyperlane plan smollm2-135m --local-workers 2

    hyperlane plan ./model.gguf --worker 192.168.1.20:7420 --worker 192.168.1.21:7420 --json
    """
    from hyperlane import summary
    from hyperlane.node import Looking, make_plan
    from hyperlane.plain import plain

    with progress_bars() as bars:
        looking = Looking(load(DiscoveryConfig, common.config))
        found = make_plan(serving.resolve(model, common), LoadBars(bars), looking)
    if as_json:
        write_json(plain(found))
    else:
        print(summary.plan_line(found), summary.plan_table(found), sep="\n\n")
