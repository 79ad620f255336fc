"""`hyperlane token`: words with which other machines join this machine's cluster."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from hyperlane import config
from hyperlane.cli.command import command
from hyperlane.cli.flags import CommonFlags
from hyperlane.cli.terminal import note, write_json
from hyperlane.config import JoinConfig
from hyperlane.errors import UsageError

if TYPE_CHECKING:
    from hyperlane.cluster.trust.token_store import TokenRecord

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Make, list and revoke tokens to join with.")

DEFAULT_LIFETIME = "24h"
_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0}


@app.command("create")
@command
def create(
    *,
    expires: Annotated[str, typer.Option(metavar="TIME", help="how long it is valid: 30m, 24h, 7d")] = DEFAULT_LIFETIME,
    uses: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="how many machines may join with it")] = 1,
    common: CommonFlags,
) -> None:
    """Make a token. It is printed once: only its hash is kept.

    [bold]Examples[/bold]

    hyperlane token create

    hyperlane token create --expires 1h --uses 5
    """
    from hyperlane.cluster.trust.opening import door_addresses, required_head_trust

    lifetime_s = duration(expires)
    settings = config.load(JoinConfig, common.config)
    trust = required_head_trust(settings.paths)
    addresses = door_addresses(trust, settings)
    word = trust.create_token(addresses, lifetime_s=lifetime_s, uses=uses).encode()
    note(how_to_join(word, expires, uses), style="")
    note(f"machines join at {', '.join(map(str, addresses))} while `hyperlane serve` runs here")
    print(word)


@app.command("list")
@command
def list_tokens(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="print the list as JSON")] = False,
    common: CommonFlags,
) -> None:
    """List the tokens and what became of them. Their secrets are known to nobody here."""
    from hyperlane.cluster.trust.opening import required_head_trust
    from hyperlane.summary import columns

    now = time.time()
    tokens = required_head_trust(config.load(JoinConfig, common.config).paths).tokens.all()
    if as_json:
        write_json([_plain(one, now) for one in tokens])
        return
    rows = [
        (one.token_id, one.state(now) or "open", f"{len(one.used_by)} of {one.uses}", moment(one.expires_at))
        for one in tokens
    ]
    print(columns([("id", "state", "used", "expires"), *rows]))


@app.command("revoke")
@command
def revoke(
    *,
    token_id: Annotated[str, typer.Argument(metavar="ID", help="id from `hyperlane token list`, or its beginning")],
    common: CommonFlags,
) -> None:
    """Take a token back: nobody joins with it any more. Who has joined stays (see `hyperlane node remove`)."""
    from hyperlane.cluster.trust.opening import required_head_trust

    record = required_head_trust(config.load(JoinConfig, common.config).paths).tokens.revoke(token_id)
    note(f"token {record.token_id} is revoked")


def how_to_join(word: str, valid: str, uses: int) -> str:
    """What to do with a token."""
    machines = "one machine" if uses == 1 else f"{uses} machines"
    return f"on every other machine, once (valid for {valid}, for {machines}):\n  hyperlane worker --join {word}"


def duration(text: str) -> float:
    """Seconds of `30m`, `24h` or `7d`.

    Raises:
        UsageError: it is none of these.

    """
    match = re.fullmatch(r"(\d{1,4})([mhd])", text.strip().lower())
    if match is None or not int(match[1]):
        raise UsageError(f"'{text}' is no time; write for instance 30m, 24h or 7d")
    return int(match[1]) * _SECONDS[match[2]]


def moment(seconds: float) -> str:
    """A time since 1970 as people here read it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _plain(one: TokenRecord, now: float) -> dict[str, object]:
    return {
        "id": one.token_id,
        "state": one.state(now) or "open",
        "uses": one.uses,
        "used_by": list(one.used_by),
        "created_at": one.created_at,
        "expires_at": one.expires_at,
    }
