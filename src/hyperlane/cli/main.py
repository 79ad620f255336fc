"""The `hyperlane` program: its commands, `--version`, and what `python -m hyperlane` runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from hyperlane import __version__
from hyperlane.cli import (
    bench,
    cache,
    chat,
    doctor,
    export,
    models,
    node,
    plan,
    run,
    serve,
    service,
    status,
    token,
    worker,
)
from hyperlane.cli.command import end_on_terminate
from hyperlane.cli.terminal import speak_utf8
from hyperlane.wire.compiled import is_compiled

app = typer.Typer(
    name="hyperlane",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"hyperlane {__version__}{' (compiled)' if is_compiled() else ''}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """One language model over the machines of a LAN, behind one OpenAI-compatible endpoint.

    [bold]Begin with[/bold]

    hyperlane run smollm2-135m "Why is the sky blue?" --local-workers 2

    Settings also come from variables (HYPERLANE_SERVE_SLOTS=8) and from a file (section serve: slots = 8).

    Exit codes: 0 done, 2 wrong use, 3 model file, 4 runtime or device, 5 workers, 6 link or pipeline, 7 transfer,
    130 Ctrl-C.
    """


for _name, _command in {
    "run": run.run,
    "chat": chat.chat,
    "serve": serve.serve,
    "worker": worker.worker,
    "plan": plan.plan,
    "status": status.status,
    "doctor": doctor.doctor,
    "service": service.service,
    "pull": models.pull,
    "models": models.models,
    "rm": models.rm,
    "bench": bench.bench,
    "export": export.export,
}.items():
    app.command(_name)(_command)
app.add_typer(cache.app, name="cache")
app.add_typer(token.app, name="token")
app.add_typer(node.app, name="node")


def main() -> None:
    """Run the command line; a reader of our output that has gone away is no error worth words."""
    speak_utf8()
    end_on_terminate()
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
