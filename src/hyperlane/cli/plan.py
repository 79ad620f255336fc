"""`hyperlane plan`: where a model's layers could go, and what each placement would do. Nothing is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hyperlane.cli.command import command
from hyperlane.cli.flags import MODEL_HELP, CommonFlags, ServeFlags
from hyperlane.cli.loading import LoadBars
from hyperlane.cli.terminal import progress_bars, write_json
from hyperlane.config import DiscoveryConfig, load
from hyperlane.errors import DoesNotFit

if TYPE_CHECKING:
    from hyperlane.cluster.planning import Outlook


@command
def plan(
    *,
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    as_json: Annotated[bool, typer.Option("--json", help="print plan and candidates as JSON")] = False,
    serving: ServeFlags,
    common: CommonFlags,
) -> None:
    """Show where the layers could go, what each placement would do, and which would be taken. Nothing is loaded.

    Each worker is measured with a few layers of the model's shape, and the paths between them; what was measured
    before is not measured again. Ends with exit code 5 where nothing fits, after saying what would.

    [bold]Examples[/bold]

    hyperlane plan smollm2-135m --local-workers 2

    hyperlane plan ./model.gguf --context 8192 --slots 8 --optimize throughput

    hyperlane plan ./model.gguf -w 192.168.1.20:7420 -w 192.168.1.21:7420 --layers local0=0:8 --json
    """
    from hyperlane.node import Looking, make_plan
    from hyperlane.plain import plain

    with progress_bars() as bars:
        looking = Looking(load(DiscoveryConfig, common.config))
        found = make_plan(serving.resolve(model, common), LoadBars(bars), looking)
    if as_json:
        write_json(plain(found))
    else:
        print(_text(found))
    if found.plan is None:
        raise typer.Exit(DoesNotFit.exit_code)


def _text(found: Outlook) -> str:
    from hyperlane import summary
    from hyperlane.cluster.planner.table import survey_text

    parts = [summary.plan_line(found.plan)] if found.plan is not None else []
    if found.survey is not None:
        parts.append(survey_text(found.survey))
    elif found.plan is not None:
        parts.append(summary.plan_table(found.plan))
    if found.plan is not None:
        parts.append(summary.carried_line(found.plan))
    if found.replicas:
        parts.append(summary.replica_plans(found.replicas))
    if found.spare is not None:
        parts.append(summary.spare_line(found.spare))
    return "\n\n".join(filter(None, parts))
