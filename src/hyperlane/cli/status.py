"""`hyperlane status`: what a running `hyperlane serve` says of itself."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Annotated

import typer

from hyperlane import config
from hyperlane.cli.command import command
from hyperlane.cli.flags import CommonFlags
from hyperlane.cli.terminal import write_json
from hyperlane.config import ApiConfig
from hyperlane.core import Address, HeadStatus
from hyperlane.errors import ClusterError, UsageError

TIMEOUT_S = 10.0
MAX_BYTES = 16 << 20


@command
def status(
    *,
    url: Annotated[
        str | None,
        typer.Option("--url", "-u", metavar="URL", help="the server's address (default: the configured port here)"),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--api-key", metavar="KEY", help="the server's key (default: the configured one)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the status as JSON")] = False,
    common: CommonFlags,
) -> None:
    """Show what a running server does: plan, stages' times, bytes on the links, requests.

    [bold]Examples[/bold]

    hyperlane status

    hyperlane status --url http://192.168.1.10:8000 --json
    """
    from hyperlane import summary
    from hyperlane.plain import plain, revive

    edge = config.load(ApiConfig, common.config)
    base = (url or f"http://{Address(edge.host, edge.port)}").rstrip("/").removesuffix("/v1")
    answer = fetch(f"{base}/status", key or (edge.key[0] if edge.key else None))
    try:
        head = revive(HeadStatus, json.loads(answer))
    except ValueError as error:
        raise ClusterError(f"{base} answers, but not as a Hyperlane server of this version does: {error}") from error
    if as_json:
        write_json(plain(head))
    else:
        print(summary.status_text(head))


def fetch(url: str, key: str | None) -> bytes:
    """The body of a GET.

    Raises:
        UsageError: the address is no HTTP address, or the server refuses the key.
        ClusterError: nothing answers there, or what answers has no status.

    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"'{url}' is no HTTP address; write for instance http://127.0.0.1:8000")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 (checked above)
            body: bytes = response.read(MAX_BYTES)
            return body
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (401, 403):
                raise UsageError(f"{url} asks for a key; give the right one with --api-key") from error
            raise ClusterError(f"{url} answers {error.code} {error.reason}; is it a Hyperlane server?") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ClusterError(f"nothing answers at {url}: {reason}; is `hyperlane serve` running there?") from error
