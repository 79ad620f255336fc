"""`hyperlane cache`: the weights of layers that this machine keeps, and how much of its disk they may take."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from hyperlane import config, values
from hyperlane.cli.command import command
from hyperlane.cli.flags import CommonFlags
from hyperlane.cli.terminal import write_json
from hyperlane.config import CacheConfig
from hyperlane.errors import ConfigError

if TYPE_CHECKING:
    from hyperlane.store.cache import Cache
    from hyperlane.store.eviction import Entry

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Show and bound the weights of layers that this machine keeps. Model files are `hyperlane models`' matter.",
)

Json = Annotated[bool, typer.Option("--json", help="print it as JSON")]
FORGET = "none"
_WORDS = {"tensors": "tensors as in the file", "partial": "unfinished", "ready": "ready to map"}


@app.command("list")
@command
def list_entries(*, as_json: Json = False, common: CommonFlags) -> None:
    """List what is kept, by model: tensors that came from others, and weights in the engine's form."""
    from hyperlane.store.eviction import by_model
    from hyperlane.summary import columns

    groups = by_model(_cache(common).entries())
    if as_json:
        write_json([_plain(group) for group in groups])
        return
    rows = [(g.name or "?", g.model[:8], _WORDS[g.kind], _size(g.nbytes), _moment(g.used_s), _state(g)) for g in groups]
    print(columns([("model", "id", "what", "size", "last used", ""), *rows]))


@app.command("size")
@command
def size(*, as_json: Json = False, common: CommonFlags) -> None:
    """Say how much there is, how much of it is in use, and how much there may be."""
    cache = _cache(common)
    entries = cache.entries()
    used, in_use = _sum(entries), sum(entry.nbytes for entry in entries if entry.in_use)
    allowed = cache.allowed(used)
    if as_json:
        write_json({"bytes": used, "in_use_bytes": in_use, "allowed_bytes": allowed, "limit_bytes": cache.limit})
        return
    print(f"{_size(used)} kept ({_size(in_use)} in use), {_size(allowed)} allowed{_why(cache)}")


@app.command("limit")
@command
def limit(
    *,
    bound: Annotated[
        str | None,
        typer.Argument(metavar="[SIZE]", help=f"bytes, as 40GiB; '{FORGET}' leaves a tenth of the disk free"),
    ] = None,
    as_json: Json = False,
    common: CommonFlags,
) -> None:
    """Show the limit, or set it for this machine, and drop what is over it.

    [bold]Example[/bold]

    hyperlane cache limit 40GiB
    """
    cache, gone = _cache(common), []
    if bound is not None:
        cache.set_limit(None if bound == FORGET else _bytes(bound))
        cache = _cache(common)
        gone = cache.trim()
    if as_json:
        write_json({"limit_bytes": cache.limit, "removed_bytes": _sum(gone)})
        return
    print(f"{_size(cache.allowed(_sum(cache.entries())))} allowed{_why(cache)}")
    _tell(gone)


@app.command("prune")
@command
def prune(*, as_json: Json = False, common: CommonFlags) -> None:
    """Drop what is over the limit, unfinished tensors, and tensors whose weights are ready to map as well."""
    _removed(_cache(common).prune(), as_json=as_json)


@app.command("clear")
@command
def clear(*, as_json: Json = False, common: CommonFlags) -> None:
    """Drop everything that no running worker uses. The next load fetches and converts it again."""
    _removed(_cache(common).clear(), as_json=as_json)


def _cache(common: CommonFlags) -> Cache:
    from hyperlane.store.cache import Cache

    found = config.load(CacheConfig, common.config)
    return Cache(found.paths.cache, found.limit)


def _bytes(text: str) -> int:
    try:
        return values.size(text)
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}; write for instance 40GiB, or '{FORGET}'") from None


def _plain(group: Entry) -> dict[str, object]:
    return {
        "model": group.model,
        "name": group.name,
        "kind": group.kind.value,
        "bytes": group.nbytes,
        "used_s": group.used_s,
        "in_use": group.in_use,
        "spare": group.spare,
    }


def _removed(gone: list[Entry], *, as_json: bool) -> None:
    if as_json:
        write_json({"removed_bytes": _sum(gone), "removed": len(gone)})
    else:
        _tell(gone)


def _tell(gone: list[Entry]) -> None:
    print(f"{_size(_sum(gone))} removed" if gone else "nothing to remove")


def _why(cache: Cache) -> str:
    return (
        "" if cache.limit is not None else " (a tenth of the disk stays free; `hyperlane cache limit SIZE` bounds it)"
    )


def _state(group: Entry) -> str:
    return "in use" if group.in_use else "spare copy" if group.spare else ""


def _sum(entries: list[Entry]) -> int:
    return sum(entry.nbytes for entry in entries)


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "?"
