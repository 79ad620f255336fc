"""`hyperlane serve`: a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperlane.cli.command import command
from hyperlane.cli.flags import ApiFlags, CommonFlags, ServeFlags
from hyperlane.cli.loading import loaded_model
from hyperlane.cli.terminal import note


@command
def serve(
    *,
    model: Annotated[str, typer.Argument(help="name from `hyperlane models`, or the path of a GGUF file")],
    api: ApiFlags,
    serving: ServeFlags,
    common: CommonFlags,
) -> None:
    """Serve a model behind an OpenAI-compatible endpoint.

    [bold]Examples[/bold]

    hyperlane serve smollm2-135m --local-workers 2 --port 8000

    hyperlane serve ./model.gguf --worker 192.168.1.20:7420 --worker 192.168.1.21:7420 --api-key secret
    """
    from hyperlane.api import HttpServer, bind_socket, create_app

    edge = api.resolve(common)
    config = serving.resolve(model, common)
    with bind_socket(edge.host, edge.port) as listener, loaded_model(config) as loaded:
        server = HttpServer(create_app(loaded.service, edge, aliases=(model, Path(model).stem)), listener, edge)
        note(_how_to_use(server.url, model, bool(edge.key)), style="")
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
