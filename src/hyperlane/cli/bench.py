"""`hyperlane bench`: what the pipeline of these workers does on this machine."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from hyperlane.cli.command import command
from hyperlane.cli.flags import MODEL_HELP, CommonFlags, ServeFlags
from hyperlane.cli.loading import loaded_model
from hyperlane.cli.terminal import write_json


@command
def bench(
    *,
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    prompt_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="length of the long prompt")] = 512,
    new_tokens: Annotated[int, typer.Option(metavar="N", min=2, help="tokens that are decoded")] = 128,
    streams: Annotated[int, typer.Option(metavar="N", min=1, help="requests at once, for throughput")] = 8,
    repetitions: Annotated[int, typer.Option(metavar="N", min=1, help="runs of which the median is taken")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
    serving: ServeFlags,
    common: CommonFlags,
) -> None:
    """Measure prefill, decode, the overhead of a hop and memory, with random prompts.

    [bold]Examples[/bold]

    hyperlane bench smollm2-135m --local-workers 2 --threads 1

    hyperlane bench ./model.gguf --worker 192.168.1.20:7420 --json
    """
    from hyperlane.bench.machine import describe_machine
    from hyperlane.bench.pipeline import measure, workloads

    config = serving.resolve(model, common)
    if serving.slots is None:
        config = dataclasses.replace(config, slots=max(config.slots, streams))
    machine = describe_machine()
    with loaded_model(config, quiet=as_json) as loaded:
        figures = measure(loaded.service, workloads(prompt_tokens, new_tokens, streams), repetitions)
    if as_json:
        write_json({"model": model, "machine": dataclasses.asdict(machine), **dataclasses.asdict(figures)})
        return
    rows = (
        (f"prefill of {prompt_tokens}", f"{figures.prefill:.0f} tokens/s"),
        ("time to first token", f"{figures.ttft_ms:.0f} ms"),
        ("decode, 1 stream", f"{figures.decode:.1f} tokens/s"),
        (f"decode, {streams} streams", f"{figures.decode_of_many:.1f} tokens/s"),
        ("overhead of a hop", f"{figures.hop_us:.0f} µs"),
        ("private memory", " + ".join(f"{mib:.0f}" for mib in figures.private_mib) + " MiB (head, local workers)"),
    )
    print(f"{model} on {machine}; medians of {repetitions}\n")
    for name, value in rows:
        print(f"{name:<22}{value}")
