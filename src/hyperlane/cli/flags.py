"""Groups of options that several commands share. Meanings and defaults come from the configuration they set."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hyperlane import config
from hyperlane.config import ApiConfig, JoinConfig, ServeConfig, WorkerConfig

AnyRole = ServeConfig | WorkerConfig | JoinConfig | ApiConfig

MODEL_HELP = "name from `hyperlane models`, hf.co/OWNER/REPO:QUANTISATION, URL, file or folder"
"""What every command that takes a model says of it."""

_SAMPLING, _CLUSTER, _PLAN, _API = "Sampling", "Workers and memory", "Planning", "HTTP"


def _option(role: type[AnyRole], name: str, *flags: str, **more: Any) -> Any:  # noqa: ANN401 (typer's own type is Any)
    """An option that sets a field of a role and says what the field means."""
    return typer.Option(*flags, help=config.meaning_of(role, name), show_default=False, **more)


@dataclass(frozen=True, slots=True)
class CommonFlags:
    """What every command takes."""

    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="configuration file (TOML) to use", show_default=False),
    ] = None
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log what happens; tracebacks of errors")] = False

    def words(self) -> list[str]:
        """The same on a command line, for processes that the command starts."""
        file = ["--config", str(self.config.resolve())] if self.config else []
        return [*file, *(["--verbose"] if self.verbose else [])]


@dataclass(frozen=True, slots=True)
class ServeFlags:
    """What decides where a model runs: the fields of `ServeConfig`."""

    workers: Annotated[
        list[str] | None,
        _option(ServeConfig, "workers", "--worker", "-w", metavar="HOST:PORT", rich_help_panel=_CLUSTER),
    ] = None
    local_workers: Annotated[
        int | None, _option(ServeConfig, "local_workers", metavar="N", rich_help_panel=_CLUSTER)
    ] = None
    slots: Annotated[int | None, _option(ServeConfig, "slots", metavar="N", rich_help_panel=_CLUSTER)] = None
    context: Annotated[int | None, _option(ServeConfig, "context", metavar="N", rich_help_panel=_CLUSTER)] = None
    threads: Annotated[int | None, _option(ServeConfig, "threads", metavar="N", rich_help_panel=_CLUSTER)] = None
    prefix_cache: Annotated[str | None, _option(ServeConfig, "prefix_cache", metavar="all|prompts|off")] = None
    no_prefix_cache: Annotated[bool, typer.Option("--no-prefix-cache", help="as --prefix-cache off")] = False
    offline: Annotated[bool, _option(ServeConfig, "offline", "--offline")] = False
    chat_template: Annotated[Path | None, _option(ServeConfig, "chat_template", metavar="FILE")] = None
    weights: Annotated[str | None, _option(ServeConfig, "weights", metavar="FORM", rich_help_panel=_CLUSTER)] = None
    device: Annotated[str | None, _option(ServeConfig, "device", metavar="NAME", rich_help_panel=_CLUSTER)] = None
    devices: Annotated[
        str | None, _option(ServeConfig, "devices", metavar="all|0,2|NAME,…", rich_help_panel=_CLUSTER)
    ] = None
    memory: Annotated[str | None, _option(ServeConfig, "memory", metavar="SIZE", rich_help_panel=_CLUSTER)] = None
    measure: Annotated[
        str | None, _option(ServeConfig, "measure", metavar="auto|again|never", rich_help_panel=_PLAN)
    ] = None
    optimize: Annotated[
        str | None, _option(ServeConfig, "optimize", metavar="latency|throughput", rich_help_panel=_PLAN)
    ] = None
    use: Annotated[str | None, _option(ServeConfig, "use", metavar="all|best", rich_help_panel=_PLAN)] = None
    replicas: Annotated[int | None, _option(ServeConfig, "replicas", metavar="N", rich_help_panel=_PLAN)] = None
    spare: Annotated[bool, _option(ServeConfig, "spare", "--spare", rich_help_panel=_PLAN)] = False
    layers: Annotated[list[str] | None, _option(ServeConfig, "layers", metavar="NODE=a:b", rich_help_panel=_PLAN)] = (
        None
    )

    wire: Annotated[str | None, _option(ServeConfig, "wire", metavar="auto|raw|int8|int4", rich_help_panel=_PLAN)] = (
        None
    )

    recovery_timeout_s: Annotated[
        float | None,
        _option(ServeConfig, "recovery_timeout_s", "--recovery-timeout", metavar="SECONDS", rich_help_panel=_PLAN),
    ] = None
    no_replan: Annotated[
        bool, typer.Option("--no-replan", help="keep the running plan when workers come", rich_help_panel=_PLAN)
    ] = False

    def resolve(self, model: str, common: CommonFlags) -> ServeConfig:
        """The configuration that these flags, the variables and the file make together."""
        given = _given(self)
        if given.pop("no_replan", False):
            given["replan"] = False
        if given.pop("no_prefix_cache", False):
            given["prefix_cache"] = "off"
        return config.load(ServeConfig, common.config, model=model, **given)


@dataclass(frozen=True, slots=True)
class ApiFlags:
    """Where HTTP is served: fields of `ApiConfig`."""

    host: Annotated[str | None, _option(ApiConfig, "host", metavar="HOST", rich_help_panel=_API)] = None
    port: Annotated[int | None, _option(ApiConfig, "port", "--port", "-p", metavar="N", rich_help_panel=_API)] = None
    key: Annotated[list[str] | None, _option(ApiConfig, "key", "--api-key", metavar="KEY", rich_help_panel=_API)] = None

    keys_file: Annotated[
        Path | None, _option(ApiConfig, "keys_file", "--api-keys", metavar="FILE", rich_help_panel=_API)
    ] = None
    request_timeout_s: Annotated[
        float | None,
        _option(ApiConfig, "request_timeout_s", "--request-timeout", metavar="SECONDS", rich_help_panel=_API),
    ] = None

    def resolve(self, common: CommonFlags) -> ApiConfig:
        """The configuration that these flags, the variables and the file make together."""
        return config.load(ApiConfig, common.config, **_given(self))


@dataclass(frozen=True, slots=True)
class JoinFlags:
    """Where machines join: fields of `JoinConfig`."""

    listen: Annotated[
        str | None, _option(JoinConfig, "listen", "--join-listen", metavar="HOST:PORT", rich_help_panel=_CLUSTER)
    ] = None
    advertise: Annotated[
        list[str] | None,
        _option(JoinConfig, "advertise", "--join-address", metavar="HOST:PORT", rich_help_panel=_CLUSTER),
    ] = None
    open: Annotated[bool | None, _option(JoinConfig, "open", "--join/--no-join", rich_help_panel=_CLUSTER)] = None

    def resolve(self, common: CommonFlags) -> JoinConfig:
        """The configuration that these flags, the variables and the file make together."""
        given = {} if self.open is None else {"open": self.open}
        return config.load(JoinConfig, common.config, **{**_given(self), **given})


@dataclass(frozen=True, slots=True)
class WorkerFlags:
    """What one worker is: the fields of `WorkerConfig`."""

    listen: Annotated[str | None, _option(WorkerConfig, "listen", metavar="HOST:PORT")] = None
    device: Annotated[str | None, _option(WorkerConfig, "device", metavar="NAME")] = None
    devices: Annotated[str | None, _option(WorkerConfig, "devices", metavar="all|0,2|NAME,…")] = None
    name: Annotated[str | None, _option(WorkerConfig, "name", metavar="NAME")] = None
    threads: Annotated[int | None, _option(WorkerConfig, "threads", metavar="N")] = None
    memory: Annotated[str | None, _option(WorkerConfig, "memory", metavar="SIZE")] = None
    join: Annotated[str | None, _option(WorkerConfig, "join", metavar="TOKEN")] = None
    announce: Annotated[bool, _option(WorkerConfig, "announce", "--announce", hidden=True)] = False

    def resolve(self, common: CommonFlags) -> WorkerConfig:
        """The configuration that these flags, the variables and the file make together."""
        return config.load(WorkerConfig, common.config, **_given(self))


@dataclass(frozen=True, slots=True)
class SamplingFlags:
    """How the next token is picked: fields of `core.SamplingParams`, whose defaults hold where nothing is given."""

    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "-t", help="0 is greedy; the default is 1", rich_help_panel=_SAMPLING),
    ] = None
    top_p: Annotated[
        float | None, typer.Option(help="sample within this share of the probability", rich_help_panel=_SAMPLING)
    ] = None
    top_k: Annotated[
        int | None, typer.Option(help="sample from the N most probable tokens", metavar="N", rich_help_panel=_SAMPLING)
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(help="leave out tokens below this share of the best one's probability", rich_help_panel=_SAMPLING),
    ] = None
    seed: Annotated[
        int | None, typer.Option(help="the same seed gives the same answer", metavar="N", rich_help_panel=_SAMPLING)
    ] = None
    presence_penalty: Annotated[
        float | None, typer.Option(help="lower tokens that have occurred, -2 to 2", rich_help_panel=_SAMPLING)
    ] = None
    frequency_penalty: Annotated[
        float | None, typer.Option(help="lower tokens by how often they occurred, -2 to 2", rich_help_panel=_SAMPLING)
    ] = None
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="divide the logits of tokens that have occurred; 1 is none", rich_help_panel=_SAMPLING),
    ] = None

    def given(self) -> dict[str, float]:
        """Sampling options by name, those that were given."""
        return _given(self)


@dataclass(frozen=True, slots=True)
class AnswerFlags:
    """Where an answer ends."""

    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", "-n", help="tokens of the answer; the default is until it ends", metavar="N", min=1
        ),
    ] = None
    stop: Annotated[
        list[str] | None, typer.Option(help="text that ends the answer; may be given several times", metavar="TEXT")
    ] = None
    system: Annotated[
        str | None, typer.Option("--system", "-s", help="system message of the conversation", metavar="TEXT")
    ] = None


def _given(group: Any) -> dict[str, Any]:  # noqa: ANN401 (any group of flags)
    """The options of a group that were given, by name."""
    found = {option.name: getattr(group, option.name) for option in dataclasses.fields(group)}
    return {name: value for name, value in found.items() if value is not None and value is not False and value != []}
