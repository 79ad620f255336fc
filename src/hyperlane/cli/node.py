"""`hyperlane node`: the machines that have joined this machine's cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hyperlane import config
from hyperlane.cli.command import command
from hyperlane.cli.flags import CommonFlags
from hyperlane.cli.terminal import note, write_json
from hyperlane.cli.token import moment
from hyperlane.config import Paths

if TYPE_CHECKING:
    from hyperlane.cluster.trust.members import Member

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="List and remove the machines that have joined.")


@app.command("list")
@command
def list_nodes(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="print the list as JSON")] = False,
    common: CommonFlags,
) -> None:
    """List the machines that have joined, and those that were removed lately."""
    from hyperlane.cluster.trust.opening import required_head_trust
    from hyperlane.summary import columns

    members = required_head_trust(config.load(Paths, common.config)).members.all()
    if as_json:
        write_json([_plain(member) for member in members])
        return
    rows = [
        (one.name, one.node[:8], _state(one), one.address, moment(one.joined_at), moment(one.until)) for one in members
    ]
    print(columns([("name", "id", "state", "joined from", "joined", "certificate until"), *rows]))


@app.command("remove")
@command
def remove(
    *,
    which: Annotated[str, typer.Argument(metavar="NODE", help="name or id from `hyperlane node list`")],
    common: CommonFlags,
) -> None:
    """Take back a machine's certificates, and the tokens that it has joined with.

    A running head hears of it at once and stops using the machine; other workers hear of it with the next heartbeat.

    [bold]Example[/bold]

    hyperlane node remove old-laptop
    """
    from hyperlane.cluster.trust.opening import required_head_trust

    member, tokens = required_head_trust(config.load(Paths, common.config)).remove_node(which)
    note(f"{member.name} ({member.node[:8]}) is no longer a member; it may join again with a new token")
    for token in tokens:
        note(f"token {token.token_id}, whose secret it knows, is revoked")


def _state(member: Member) -> str:
    return "member" if member.removed_at is None else "removed"


def _plain(member: Member) -> dict[str, object]:
    return {
        "node": member.node,
        "name": member.name,
        "state": _state(member),
        "address": member.address,
        "joined_at": member.joined_at,
        "certificate_until": member.until,
    }
