"""`hyperlane pull` and `hyperlane models`: bringing models of the catalogue here, and saying what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from hyperlane import config
from hyperlane.cli.command import command
from hyperlane.cli.flags import CommonFlags
from hyperlane.cli.terminal import note, progress_bars, write_json
from hyperlane.config import Paths


@command
def pull(
    *,
    model: Annotated[str, typer.Argument(help="name from `hyperlane models`")],
    common: CommonFlags,
) -> None:
    """Download a model, verify it, and print where it is.

    [bold]Example[/bold]

    hyperlane pull smollm2-135m
    """
    from hyperlane.models import catalogue
    from hyperlane.models.download import fetch

    paths = config.load(Paths, common.config)
    entry = catalogue.required(model)
    if not entry.is_installed(paths.models):
        note(f"{entry.name}: {entry.nbytes / 1e6:.0f} MB, licence: {entry.licence} ({entry.licence_url})")
    with progress_bars() as bars:
        task = bars.add_task(f"pull {entry.name}", total=None)
        path = fetch(entry, paths.models, lambda done, total: bars.update(task, completed=done, total=total))
    print(path)


@command
def models(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="print the list as JSON")] = False,
    common: CommonFlags,
) -> None:
    """List the models that have a name, and say which are on this machine.

    The path of any GGUF file of a supported architecture works wherever a name does.
    """
    from hyperlane.models.catalogue import CATALOGUE
    from hyperlane.summary import columns

    folder = config.load(Paths, common.config).models
    if as_json:
        write_json(
            [
                {
                    "name": entry.name,
                    "about": entry.about,
                    "bytes": entry.nbytes,
                    "licence": entry.licence,
                    "installed": entry.is_installed(folder),
                    "path": str(entry.path(folder)),
                }
                for entry in CATALOGUE
            ]
        )
        return
    rows = [
        (entry.name, f"{entry.nbytes / 1e6:.0f} MB", "here" if entry.is_installed(folder) else "-", entry.about)
        for entry in CATALOGUE
    ]
    print(columns([("name", "size", "", "about"), *rows]))
