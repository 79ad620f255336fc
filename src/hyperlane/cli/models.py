"""`hyperlane pull`, `models` and `rm`: bringing models here, saying what there is, and removing what was brought."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hyperlane import config
from hyperlane.cli.command import command
from hyperlane.cli.flags import MODEL_HELP, CommonFlags
from hyperlane.cli.terminal import note, progress_bars, write_json
from hyperlane.config import Paths
from hyperlane.errors import UsageError


@command
def pull(
    *,
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    common: CommonFlags,
) -> None:
    """Download a model whole, verify it, and print where it is.

    A download that was interrupted goes on where it ended.

    [bold]Examples[/bold]

    hyperlane pull smollm2-135m

    hyperlane pull hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M
    """
    from hyperlane.models import catalogue
    from hyperlane.models.digests import DigestCache
    from hyperlane.models.resolve import Library, resolve

    paths = config.load(Paths, common.config)
    entry = catalogue.find(model)
    if entry is not None and not entry.is_installed(paths.models):
        note(f"{entry.name}: {entry.nbytes / 1e6:.0f} MB, licence: {entry.licence} ({entry.licence_url})")
    with progress_bars() as bars:
        task = bars.add_task(f"pull {model}", total=None)
        library = Library(paths.models, digests=DigestCache(paths.digests))
        path = resolve(model, library, lambda done, total: bars.update(task, completed=done, total=total))
    print(path)


@command
def models(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="print the list as JSON")] = False,
    common: CommonFlags,
) -> None:
    """List the models that have a name, and those that were downloaded, with what each takes and where it is.

    Beside these, any GGUF file of a supported architecture works, and any such repository of the hub.
    """
    from hyperlane.models.listing import rows as listed
    from hyperlane.summary import columns

    rows = listed(config.load(Paths, common.config).models)
    if as_json:
        write_json([row.plain() for row in rows])
        return
    heads = ("name", "size", "", "what it is, and where")
    lines = [(row.name, _size(row.nbytes), "here" if row.installed else "-", row.text()) for row in rows]
    print(columns([heads, *lines]))


@command
def rm(
    *,
    names: Annotated[list[str], typer.Argument(metavar="MODEL", help="as `hyperlane models` lists them")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="remove without asking")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print what was removed as JSON; needs --yes")] = False,
    common: CommonFlags,
) -> None:
    """Remove downloaded models from this machine. Files that Hyperlane did not download are never touched.

    [bold]Example[/bold]

    hyperlane rm hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M
    """
    from hyperlane.models.listing import find, remove

    folder = config.load(Paths, common.config).models
    chosen = [row for name in names for row in find(name, folder)]
    if not yes:
        for row in chosen:
            note(f"{row.name}: {_size(row.nbytes)} at {row.path}")
        _ask_for_consent(as_json=as_json)
    for row in chosen:
        remove(row, folder)
    if as_json:
        write_json([row.plain() for row in chosen])
    else:
        note(f"removed {len(chosen)} and freed {_size(sum(row.nbytes for row in chosen))}")


def _ask_for_consent(*, as_json: bool) -> None:
    """Raise unless a person says yes."""
    if as_json or not sys.stdin.isatty():
        raise UsageError("nothing was removed: nobody can be asked here; say --yes")
    if not typer.confirm("Remove?", err=True):
        raise UsageError("nothing was removed")


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 10**9 else f"{nbytes / 1e6:.0f} MB"
