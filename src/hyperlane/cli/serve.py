"""`hyperlane serve`: a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperlane.cli.command import command
from hyperlane.cli.flags import MODEL_HELP, ApiFlags, CommonFlags, JoinFlags, ServeFlags
from hyperlane.cli.loading import loaded_model
from hyperlane.cli.terminal import note
from hyperlane.cli.token import duration, how_to_join
from hyperlane.config import ApiConfig, DiscoveryConfig, JoinConfig, load
from hyperlane.errors import ConfigError

if TYPE_CHECKING:
    from hyperlane.cluster.trust.opening import OpenDoor

FIRST_LIFETIME = "24h"
FIRST_USES = 16
"""Of the token that is printed at the first start."""

SWITCH_S = 1e-4
"""How long one thread's Python keeps another's waiting: frames come back while answers are written to many clients.

With Python's own 5 ms the slowest hundredth of hops took half as long again (`benchmarks/hop_tail.py`).
"""


@command
def serve(
    *,
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    api: ApiFlags,
    serving: ServeFlags,
    joining: JoinFlags,
    common: CommonFlags,
) -> None:
    """Serve a model behind an OpenAI-compatible endpoint.

    The first time it makes this machine the head of a cluster, and prints the token with which others join it.

    [bold]Examples[/bold]

    hyperlane serve smollm2-135m --local-workers 2 --port 8000

    hyperlane serve ./model.gguf --worker 192.168.1.20:7420 --worker 192.168.1.21:7420 --api-key secret
    """
    from hyperlane.api import HttpServer, bind_socket, create_app
    from hyperlane.node import Looking

    sys.setswitchinterval(SWITCH_S)
    edge = api.resolve(common)
    config = serving.resolve(model, common)
    discovery = load(DiscoveryConfig, common.config)
    check_key(edge)
    with (
        bind_socket(edge.host, edge.port) as listener,
        open_door(joining.resolve(common)) as door,
        loaded_model(config, Looking(discovery, door)) as loaded,
    ):
        server = HttpServer(create_app(loaded.service, edge, aliases=(model, Path(model).stem)), listener, edge)
        note(_how_to_use(server.url, model, edge.asks_for_key), style="")
        if door is not None:
            _invite(door)
        stopped_by = server.run()
    if stopped_by is not None:
        raise typer.Exit(128 + stopped_by)


def _how_to_use(url: str, model: str, has_key: bool) -> str:
    key = ' -H "Authorization: Bearer $KEY"' if has_key else ""
    return (
        f"ready: {url}/v1   (Ctrl-C ends)\n"
        f"  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' \\\n"
        f'    -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )


def check_key(edge: ApiConfig) -> None:
    """Whoever reaches the API may use the model: other machines must show a key.

    Raises:
        ConfigError: none is asked for.

    """
    from hyperlane.api.auth import is_loopback

    if not edge.asks_for_key and not is_loopback(edge.host):
        raise ConfigError(
            f"--host {edge.host} can be reached from other machines: give a key that they must send, with "
            "--api-key KEY or HYPERLANE_API_KEY, or one for each user, with --api-keys FILE"
        )


@contextmanager
def open_door(config: JoinConfig) -> Iterator[OpenDoor | None]:
    """The cluster's door while the block lasts; None if it was asked to stay closed."""
    from hyperlane.cluster.trust.opening import OpenDoor

    if not config.open:
        yield None
        return
    door = OpenDoor(config.paths, config, lambda name, address: note(f"{name} joined from {address.host}"))
    try:
        yield door
    finally:
        door.close()


def _invite(door: OpenDoor) -> None:
    """Print a token while nobody has had the chance to join."""
    if not door.listening or door.trust.tokens.all() or door.trust.members.all():
        return
    word = door.token(duration(FIRST_LIFETIME), FIRST_USES).encode()
    note(how_to_join(word, FIRST_LIFETIME, FIRST_USES), style="")
    note("`hyperlane token create` makes another")
