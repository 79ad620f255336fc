"""Loading a model for a command: progress on standard error, and the workers ended however the command ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hyperlane.cli.terminal import note, progress_bars
from hyperlane.config import DiscoveryConfig, ServeConfig, load

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from hyperlane.cluster.report import Progress
    from hyperlane.node import Looking
    from hyperlane.sdk import AutoDistributedModel


@contextmanager
def loaded_model(
    config: ServeConfig, looking: Looking | None = None, *, quiet: bool = False
) -> Iterator[AutoDistributedModel]:
    """The model, ready; closed at the end. What `start_serving` raises is passed on.

    `looking`: how workers are looked for when none is named; None: as the configuration says.
    """
    from hyperlane import summary
    from hyperlane.node import Looking, start_serving
    from hyperlane.sdk import AutoDistributedModel

    with progress_bars() as bars:
        looking = looking or Looking(load(DiscoveryConfig))
        serving = start_serving(config, LoadBars(bars), looking=looking)
    with AutoDistributedModel(serving) as model:
        if not quiet:
            note("\n".join(filter(None, (summary.plan_line(model.plan), summary.prediction_line(model.plan)))))
        yield model


class LoadBars:
    """A bar for each worker, and one for the head, that says what it does now. Called from any thread."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, progress: Progress) -> None:
        """Show one step of the way."""
        text = f"{progress.who}: {progress.phase}{_where_from(progress)}"
        if progress.who not in self._tasks:
            self._tasks[progress.who] = self._bars.add_task(text, total=None)
        total = progress.total or None
        self._bars.update(self._tasks[progress.who], description=text, total=total, completed=progress.done)


def _where_from(progress: Progress) -> str:
    """Rate and kinds of sources of a transfer; empty for other phases."""
    if not progress.sources:
        return ""
    kinds = ", ".join(f"{kind} {count / 1e6:.0f} MB" for kind, count in progress.sources)
    return f" ({progress.rate / 1e6:.0f} MB/s; {kinds})"
