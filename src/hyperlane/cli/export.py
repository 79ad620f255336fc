"""`hyperlane export`: some layers of a model as a plain ONNX model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperlane import config
from hyperlane.cli.command import command
from hyperlane.cli.flags import MODEL_HELP, CommonFlags
from hyperlane.cli.loading import LoadBars
from hyperlane.cli.terminal import progress_bars
from hyperlane.config import ServeConfig


@command
def export(
    *,
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    layers: Annotated[
        str | None, typer.Option(metavar="A:B", help="layers A to B - 1; all of them if not given", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="folder to write; one of the model's name if not given",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace an earlier export")] = False,
    weights: Annotated[
        str | None, typer.Option(metavar="FORM", help=config.meaning_of(ServeConfig, "weights"), show_default=False)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="provider to write for: cpu (the default), cuda, webgpu", show_default=False),
    ] = None,
    context: Annotated[
        int | None, typer.Option(metavar="N", help=config.meaning_of(ServeConfig, "context"), show_default=False)
    ] = None,
    common: CommonFlags,
) -> None:
    """Write some layers of a model as a plain .onnx with external data, for ONNX Runtime alone.

    The folder holds model.onnx, weights.bin, stage.json with every input and output, and a README with a program.

    [bold]Examples[/bold]

    hyperlane export smollm2-135m --layers 0:10

    hyperlane export ./checkpoint --layers 0:8 --weights int4 --output ./stage-0
    """
    from hyperlane.exporting import export_model

    chosen = config.load(ServeConfig, common.config, model=model, weights=weights, device=device, context=context)
    with progress_bars() as bars:
        folder = export_model(chosen, layers, output, force=force, report=LoadBars(bars))
    print(folder)
