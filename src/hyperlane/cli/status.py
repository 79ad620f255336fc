"""`hyperlane status`: what a running `hyperlane serve` says of itself."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
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
    watch: Annotated[bool, typer.Option("--watch", "-w", help="show it anew again and again, until Ctrl-C")] = False,
    every_s: Annotated[float, typer.Option("--every", metavar="SECONDS", min=0.1, help="how often")] = 1.0,
    common: CommonFlags,
) -> None:
    """Show what a running server does: plan, stages' times, requests, nodes, and the speed of the links between them.

    [bold]Examples[/bold]

    hyperlane status

    hyperlane status --watch

    hyperlane status --url http://192.168.1.10:8000 --json
    """
    from hyperlane.plain import plain

    edge = config.load(ApiConfig, common.config)
    base = (url or f"http://{Address(edge.host, edge.port)}").rstrip("/").removesuffix("/v1")
    secret = key or (edge.key[0] if edge.key else None)
    if watch:
        _watch(lambda: _shown(read(base, secret), as_json=as_json), every_s)
    elif as_json:
        write_json(plain(read(base, secret)))
    else:
        print(_shown(read(base, secret), as_json=False))


def read(base: str, key: str | None) -> HeadStatus:
    """The status of the server at an address.

    Raises:
        UsageError, ClusterError: as `fetch`, or what answers is of another version.

    """
    from hyperlane.plain import revive

    answer = fetch(f"{base}/status", key)
    try:
        return revive(HeadStatus, json.loads(answer))
    except ValueError as error:
        raise ClusterError(f"{base} answers, but not as a Hyperlane server of this version does: {error}") from error


def _shown(head: HeadStatus, *, as_json: bool) -> str:
    from hyperlane import summary
    from hyperlane.plain import plain

    return json.dumps(plain(head), ensure_ascii=False) if as_json else summary.status_text(head)


def _watch(show: Callable[[], str], every_s: float) -> None:
    """On a terminal one picture that changes; elsewhere one text after the other. A server that is away may return."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    with suppress(KeyboardInterrupt), Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            try:
                shown = show()
            except ClusterError as error:
                shown = str(error)
            if console.is_terminal:
                live.update(Text(f"{time.strftime('%H:%M:%S')}  Ctrl-C ends\n\n{shown}", no_wrap=True), refresh=True)
            else:
                print(shown, flush=True)
            time.sleep(every_s)


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
