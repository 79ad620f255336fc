"""`hyperlane bench`: what a pipeline of these workers does, or what any endpoint does that speaks OpenAI's API."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperlane.cli.command import command
from hyperlane.cli.flags import MODEL_HELP, CommonFlags, ServeFlags
from hyperlane.cli.loading import loaded_model
from hyperlane.cli.terminal import note, write_json
from hyperlane.errors import UsageError

DECODE_FRAMES = 24
"""Frames of decoding that a timeline shows."""

if TYPE_CHECKING:
    from hyperlane.bench.picture import Panel
    from hyperlane.bench.suite import Suite
    from hyperlane.bench.workload import Sample, Workload
    from hyperlane.config import ServeConfig
    from hyperlane.head.service import HeadService


@command
def bench(
    *,
    model: Annotated[str | None, typer.Argument(help=MODEL_HELP, show_default=False)] = None,
    prompt_tokens: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="length of a prompt; may be given several times (default: 128, 512)"),
    ] = None,
    new_tokens: Annotated[int, typer.Option(metavar="N", min=2, help="tokens that a stream decodes")] = 128,
    streams: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="requests at once; may be given several times (default: 1, 8)"),
    ] = None,
    repetitions: Annotated[int, typer.Option(metavar="N", min=1, help="runs of which the median is taken")] = 5,
    timeline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="draw when each stage computed which frame, as SVG", show_default=False),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="measure this OpenAI-compatible server instead", show_default=False),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--api-key", metavar="KEY", help="the endpoint's key", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
    serving: ServeFlags,
    common: CommonFlags,
) -> None:
    """Measure prompts of several lengths, one stream and many, and where the time goes, with random prompts.

    [bold]Examples[/bold]

    hyperlane bench smollm2-135m --local-workers 2 --threads 1

    hyperlane bench ./model.gguf --worker 192.168.1.20:7420 --prompt-tokens 2000 --timeline stages.svg

    hyperlane bench --endpoint http://127.0.0.1:11434/v1 --streams 1 --streams 16 --json
    """
    from hyperlane.bench.suite import Suite

    given = {"prompts": tuple(prompt_tokens or ()), "streams": tuple(streams or ())}
    suite = Suite(
        new_tokens=new_tokens, repetitions=repetitions, **{name: said for name, said in given.items() if said}
    )
    if endpoint is not None:
        if timeline is not None:
            raise UsageError("an endpoint does not tell what its stages do; leave out --timeline or --endpoint")
        _bench_endpoint(endpoint, model, key, suite, as_json=as_json)
    elif model is None:
        raise UsageError("name a model to load, or a server to measure with --endpoint URL")
    else:
        _bench_pipeline(serving.resolve(model, common), suite, timeline, as_json=as_json)


def _bench_endpoint(url: str, model: str | None, key: str | None, suite: Suite, *, as_json: bool) -> None:
    from hyperlane.bench.endpoint import Endpoint
    from hyperlane.bench.machine import describe_machine
    from hyperlane.bench.report import figures_text
    from hyperlane.bench.suite import measure
    from hyperlane.plain import plain

    endpoint = Endpoint(url, model, key)
    figures = measure(endpoint.run, suite)
    if as_json:
        machine = plain(describe_machine())
        write_json({"endpoint": endpoint.url, "model": endpoint.model, "client": machine, "figures": plain(figures)})
        return
    print(f"{endpoint.model} at {endpoint.url}, measured from {describe_machine()}; medians of {suite.repetitions}\n")
    print(figures_text(figures))


def _bench_pipeline(config: ServeConfig, suite: Suite, picture: Path | None, *, as_json: bool) -> None:
    import psutil

    from hyperlane import summary
    from hyperlane.bench.machine import describe_machine, private_bytes
    from hyperlane.bench.picture import svg
    from hyperlane.bench.pipeline import local_workers
    from hyperlane.bench.report import figures_text, memory_line
    from hyperlane.bench.suite import measure
    from hyperlane.head.service import HeadService
    from hyperlane.plain import plain

    config = dataclasses.replace(config, slots=max(config.slots, *suite.streams))
    with loaded_model(config, quiet=as_json) as loaded:
        service = loaded.service
        assert isinstance(service, HeadService)
        watched = _Watched(service)
        figures = measure(watched.run, suite, watched.keep)
        status = service.status()
        private_mib = [private_bytes(pid) / 2**20 for pid in (psutil.Process().pid, *local_workers())]
    if picture is not None:
        picture.write_text(svg(watched.panels), encoding="utf-8")
        note(f"timeline: {picture}")
    bubbles = {panel.title: panel.timeline.bubble for panel in watched.panels}
    if as_json:
        report = {"model": status.model, "machine": plain(describe_machine()), "figures": plain(figures)}
        write_json({**report, "private_mib": plain(private_mib), "bubbles": dict(bubbles), "status": plain(status)})
        return
    print(f"{status.model} on {describe_machine()}; medians of {suite.repetitions}\n")
    shares = ", ".join(f"{title} {share:.0%}" for title, share in bubbles.items())
    parts = (
        figures_text(figures),
        summary.stages_table(status),
        summary.links_line(status),
        f"overhead of a hop: {status.hop_us:.0f} µs; no stage computed: {shares}",
        memory_line(private_mib),
        summary.speeds_table(status),
    )
    print("\n\n".join((parts[0], "\n".join(parts[1:5]), parts[5])))


class _Watched:
    """Runs workloads against a head and keeps the timelines of the last repetition of each."""

    def __init__(self, service: HeadService) -> None:
        self._service = service
        self._began_s = 0.0
        self.panels: list[Panel] = []

    def run(self, workload: Workload, number: int) -> Sample:
        """One run."""
        from hyperlane.bench.workload import run_workload

        before = self._service.recent_frames()
        self._began_s = before[-1].left_s if before else 0.0
        return run_workload(self._service, workload, number)

    def keep(self, workload: Workload) -> None:
        """The frames of the run that was the last, as many as the head remembers; of decoding, a few rounds."""
        from hyperlane.bench.picture import Panel
        from hyperlane.bench.timeline import timeline

        frames = [frame for frame in self._service.recent_frames() if frame.left_s > self._began_s]
        is_prompt = workload.new_tokens == 1
        if not is_prompt:
            frames = frames[len(frames) // 2 :][:DECODE_FRAMES]
        count = workload.prompt_tokens if is_prompt else workload.streams
        title = f"prompt of {count} tokens" if is_prompt else f"{count} stream{'s' if count > 1 else ''}"
        self.panels.append(Panel(title, timeline(frames), is_prompt))
