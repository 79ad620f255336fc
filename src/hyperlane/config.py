"""One frozen configuration per role, every field with its unit, meaning, default and range in one place.

The only reader of `HYPERLANE_*` variables, the configuration file and flags. Knows nothing of what its users do
with the values. Precedence: flag, variable (`HYPERLANE_SERVE_SLOTS`), file (`[serve]` `slots`), default.
"""

# ruff: noqa: RUF009 (fields are made by a helper that returns dataclasses.field)

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import platformdirs

from hyperlane import values
from hyperlane.core import Address, WeightForm
from hyperlane.errors import ConfigError
from hyperlane.said import refuse_unknown, said_by_file, said_by_variables


def _setting(default: Any, read: Callable[[object], object], meaning: str) -> Any:  # noqa: ANN401 (as dataclasses.field)
    """A field with its reader and meaning; None as a default means 'unset' and is never read."""
    return field(default=default, metadata={"read": read, "meaning": meaning})


# --- the roles -----------------------------------------------------------------------------------------------


class _Checked:
    """A role whose values are checked however it is made: ConfigError when one is out of its range."""

    __slots__ = ()

    def __post_init__(self) -> None:
        """Check every value."""
        _check(self)


@dataclass(frozen=True, slots=True)
class Paths:
    """Where files are kept. `HYPERLANE_HOME` moves both; otherwise they are the platform's own directories."""

    section: ClassVar[str] = "paths"

    cache: Path = _setting(
        None, values.path, "downloaded models and weights in ready form; may be deleted whenever nothing runs"
    )
    state: Path = _setting(None, values.path, "identity, keys and certificates, epoch counter, chat history; kept")
    machine: str | None = _setting(
        None,
        values.text,
        "what tells this machine from others, so that a state directory copied to another one is noticed; unset: the "
        "system's own id, which containers may share",
    )

    def __post_init__(self) -> None:
        """Fill in the platform's directories."""
        dirs = platformdirs.PlatformDirs("hyperlane", appauthor=False)
        object.__setattr__(self, "cache", self.cache or dirs.user_cache_path)
        object.__setattr__(self, "state", self.state or dirs.user_state_path)

    @classmethod
    def under(cls, home: Path) -> Paths:
        """Both directories inside one."""
        return cls(cache=home / "cache", state=home / "state")

    @property
    def models(self) -> Path:
        """Downloaded model files."""
        return self.cache / "models"

    @property
    def digests(self) -> Path:
        """Content hashes of model files, so that gigabytes are hashed once."""
        return self.cache / "digests"

    @property
    def ready(self) -> Path:
        """Weights in the engine's ready form."""
        return self.cache / "ready"

    @property
    def tensors(self) -> Path:
        """Tensors that came from other machines, as their model's file has them."""
        return self.cache / "tensors"


@dataclass(frozen=True, slots=True)
class ServeConfig(_Checked):
    """What a head needs: the model, its workers, and the sizes of the pipeline."""

    section: ClassVar[str] = "serve"

    model: str = _setting(
        "smollm2-135m", values.text, "a name of the catalogue, hf.co/OWNER/REPO:QUANTISATION, a URL, a file or a folder"
    )
    workers: tuple[Address, ...] = _setting((), values.addresses, "control addresses of workers on other machines")
    local_workers: int | None = _setting(
        None, values.whole(0, 64), "worker processes on this machine; unset: 1 if no other worker is given, else 0"
    )
    slots: int = _setting(4, values.whole(1, 4096), "KV slots: sequences that are generated at the same time")
    context: int | None = _setting(
        None,
        values.whole(16, 1 << 24),
        "tokens of a slot, prompt and answer together; unset: the model's, at most 8192",
    )
    queue: int = _setting(64, values.whole(1, 1 << 20), "requests that may wait for a slot before others are refused")
    prompt_chunk: int = _setting(
        64, values.whole(1, 1 << 16), "tokens of a prompt that a stage computes together before it passes them on"
    )
    frames_in_flight: int | None = _setting(
        None,
        values.whole(1, 1024),
        "step frames in the ring at the same time; unset: twice as many as there are stages",
    )
    prefix_cache: str = _setting(
        "all",
        values.prefix_cache,
        "what prompts go on from, not computed again: 'all' that a slot holds, 'prompts' (same bits as without), 'off'",
    )
    threads: int | None = _setting(
        None, values.whole(1, 1024), "compute threads of each local worker; unset: this machine's cores, divided"
    )
    offline: bool = _setting(False, values.yes_or_no, "use models that are on this machine, and ask no hub")
    chat_template: Path | None = _setting(
        None, values.path, "file with a Jinja chat template to use; unset: the one in the model's file"
    )
    device: str = _setting("auto", values.device, "device of the local workers")
    memory: int | None = _setting(
        None, values.size, "bytes that each local worker may use; unset: what is free, divided among them"
    )
    optimize: str = _setting(
        "latency",
        values.one_of("latency", "throughput"),
        "what the plan is best at: latency, the time per token of one stream, or throughput, tokens per second of many",
    )
    use: str | None = _setting(
        None,
        values.one_of("all", "best"),
        "which workers take part: all, or the best of them; unset: all if they were named or numbered, the best of "
        "those that were found",
    )
    layers: tuple[str, ...] = _setting(
        (),
        values.texts,
        "a placement by hand, NODE=a:b for each stage: layers a to b - 1 on that worker, NODE its name or address; "
        "local0, local1, … are this machine's own workers",
    )
    wire: str = _setting(
        "auto",
        values.one_of("auto", "raw", "int8", "int4"),
        "how hidden states are packed between workers: raw, int8, int4 on every link, or auto, for each link what its "
        "measured speed asks for (raw within a machine)",
    )
    measure: str = _setting(
        "auto",
        values.one_of("auto", "again", "never"),
        "what devices and paths are measured for a plan: auto, those that were not before; again, every device; never: "
        "layers go by free memory",
    )
    connect_timeout_s: float = _setting(10.0, values.seconds, "seconds until a worker that does not answer is given up")
    load_timeout_s: float = _setting(600.0, values.seconds, "seconds that a worker may take to load its stage")
    recovery_timeout_s: float = _setting(120.0, values.seconds, "seconds that requests wait when workers were lost")
    replan: bool = _setting(True, values.yes_or_no, "move to a better plan while serving, when a worker comes")
    weights: WeightForm | None = _setting(
        None,
        values.weights,
        "int4, int8 or fp16: what weights that the model stores in full become; unset: int8 for a checkpoint, fp16 for "
        "a GGUF file",
    )
    paths: Paths = field(default_factory=Paths)

    @property
    def step_tokens(self) -> int:
        """Tokens that one step frame may hold: a chunk of a prompt beside one token of every slot."""
        return self.prompt_chunk + self.slots

    @property
    def local_worker_count(self) -> int:
        """Worker processes to start on this machine."""
        if self.local_workers is not None:
            return self.local_workers
        return 0 if self.workers else 1

    @property
    def uses_all(self) -> bool:
        """Whether no worker is to be left out of the plan."""
        return self.use == "all" or (self.use is None and bool(self.workers or self.local_workers is not None))

    def local_threads(self, cores: int) -> int:
        """Compute threads of each local worker on a machine with so many usable cores."""
        return self.threads or max(1, cores // max(1, self.local_worker_count))


@dataclass(frozen=True, slots=True)
class WorkerConfig(_Checked):
    """What one worker process needs."""

    section: ClassVar[str] = "worker"

    listen: Address | None = _setting(
        None,
        values.address,
        "address of the control port, the data port is the next free one; unset: port 7420, of every address if this "
        "machine has joined a cluster, else of 127.0.0.1",
    )
    join: str | None = _setting(None, values.text, "token with which this machine joins a cluster, once")
    credentials: str | None = _setting(
        None,
        values.text,
        "folder of the certificate to use, or 'none' for plain text on loopback; heads say it to their own workers",
    )
    device: str = _setting("auto", values.device, "device that this worker computes on")
    threads: int | None = _setting(None, values.whole(1, 1024), "compute threads; unset: all usable cores")
    memory: int | None = _setting(None, values.size, "bytes that this worker may use; unset: what is free")
    drain_s: float = _setting(
        30.0, values.seconds, "seconds that a worker told to stop waits until others have its layers"
    )
    announce: bool = _setting(
        False, values.yes_or_no, "print one JSON line with the ports, and exit when standard input ends"
    )
    paths: Paths = field(default_factory=Paths)


@dataclass(frozen=True, slots=True)
class JoinConfig(_Checked):
    """Where machines join the cluster of this head."""

    section: ClassVar[str] = "join"

    open: bool = _setting(True, values.yes_or_no, "let machines that have a token join while the model is served")
    listen: Address = _setting(Address("::", 7419), values.address, "address where machines join")
    advertise: tuple[Address, ...] = _setting(
        (), values.addresses, "addresses that tokens name; unset: this machine's own on its networks"
    )
    paths: Paths = field(default_factory=Paths)


@dataclass(frozen=True, slots=True)
class DiscoveryConfig(_Checked):
    """How machines of a cluster find each other."""

    section: ClassVar[str] = "discovery"

    mdns: bool = _setting(True, values.yes_or_no, "advertise and look for machines over mDNS")
    addresses: tuple[Address, ...] = _setting(
        (), values.addresses, "control addresses of workers that may be there, for networks without multicast"
    )
    interfaces: tuple[str, ...] = _setting(
        (), values.texts, "interfaces to look on; unset: all that lead to other machines"
    )
    loopback: bool = _setting(False, values.yes_or_no, "look on this machine's own interface too, for tests")
    wait_s: float = _setting(3.0, values.seconds, "seconds that a starting head waits for machines to be found")


@dataclass(frozen=True, slots=True)
class CacheConfig(_Checked):
    """What a machine keeps of weights."""

    section: ClassVar[str] = "cache"

    limit: int | None = _setting(
        None,
        values.size,
        "bytes that weights may take in the cache when they are not in use; unset: what `hyperlane cache limit` set, "
        "else all but a tenth of the disk",
    )
    paths: Paths = field(default_factory=Paths)


@dataclass(frozen=True, slots=True)
class ApiConfig(_Checked):
    """What the HTTP edge needs."""

    section: ClassVar[str] = "api"

    host: str = _setting("127.0.0.1", values.text, "address that the HTTP server listens on")
    port: int = _setting(8000, values.whole(0, 65535), "port of the HTTP server; 0: any free one")
    key: tuple[str, ...] | None = _setting(
        None, values.some_texts, "keys, any of which clients must send as a bearer token; unset: none is asked for"
    )
    cors_origins: tuple[str, ...] = _setting(
        (),
        values.texts,
        "web origins whose pages may call, '*' for all; unset: all if a key is asked for, else pages of this machine",
    )
    hosts: tuple[str, ...] = _setting(
        (), values.texts, "further names in the Host header that a server on loopback answers to, '*' for all"
    )
    names: tuple[str, ...] = _setting((), values.texts, "further names that requests may give the model")
    access_log: bool = _setting(False, values.yes_or_no, "write a line to standard error for each HTTP request")
    drain_s: float = _setting(5.0, values.seconds, "seconds that running answers may take to end after a stop signal")
    max_body: int = _setting(8 << 20, values.size, "bytes that a request's body may have")


Role = TypeVar("Role", Paths, ServeConfig, WorkerConfig, JoinConfig, DiscoveryConfig, CacheConfig, ApiConfig)
_ROLES = (Paths, ServeConfig, WorkerConfig, JoinConfig, DiscoveryConfig, CacheConfig, ApiConfig)


def meaning_of(role: type[ServeConfig | WorkerConfig | JoinConfig | ApiConfig], name: str) -> str:
    """What a field means, with its default, for a flag's help."""
    found = _known(role)[name]
    default = "" if found.default in (None, (), False) else f" (default: {found.default})"
    return f"{found.metadata['meaning']}{default}"


def load(role: type[Role], file: Path | None = None, /, **flags: object) -> Role:
    """Build a role's configuration from this process's variables, the file and flags (None: not given).

    Raises:
        ConfigError: a key is unknown, a value is out of its range, or the file cannot be read.

    """
    return Settings.read(os.environ, file).resolve(role, **flags)


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- where values come from ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """What the variables and the file say: by section and key, each with the place that said it."""

    said: Mapping[tuple[str, str], tuple[object, str]]
    home: Path | None = None

    @classmethod
    def read(cls, environ: Mapping[str, str], file: Path | None = None) -> Settings:
        """Read the variables, and the file given here, by `HYPERLANE_CONFIG`, or found in the usual place.

        Raises:
            ConfigError: a key is unknown, or the file cannot be read.

        """
        home = Path(environ["HYPERLANE_HOME"]).expanduser() if environ.get("HYPERLANE_HOME") else None
        asked = file or (Path(environ["HYPERLANE_CONFIG"]) if environ.get("HYPERLANE_CONFIG") else None)
        usual = (home or platformdirs.user_config_path("hyperlane", appauthor=False)) / "config.toml"
        known = {role.section: tuple(_known(role)) for role in _ROLES}
        said = said_by_file(asked or usual, known, must_exist=asked is not None)
        said.update(said_by_variables(environ, known))
        return cls(said, home)

    def resolve(self, role: type[Role], **flags: object) -> Role:
        """Build a role's configuration; a flag that is None was not given.

        Raises:
            ConfigError: a value is out of its range or a flag is unknown.

        """
        known = _known(role)
        chosen: dict[str, Any] = {}
        for (section, name), (value, place) in self.said.items():
            if section == role.section:
                chosen[name] = _read(known[name], value, place)
        for name, value in flags.items():
            if value is not None and name != "paths":
                refuse_unknown(name, known, "flag")
                chosen[name] = _read(known[name], value, "--" + name.replace("_", "-"))
        if role is Paths:
            return role(**{**_home_paths(self.home), **chosen})
        if "paths" in {f.name for f in fields(role)}:
            chosen["paths"] = flags.get("paths") or self.resolve(Paths)
        return role(**chosen)


def _home_paths(home: Path | None) -> dict[str, Path]:
    return {"cache": home / "cache", "state": home / "state"} if home else {}


def _known(role: type[Any]) -> dict[str, Field[Any]]:
    return {f.name: f for f in fields(role) if "read" in f.metadata}


def _read(setting: Field[Any], value: object, place: str) -> object:
    try:
        return setting.metadata["read"](value)
    except ValueError as error:
        raise ConfigError(f"{place}: {value!r}: {error} ({setting.metadata['meaning']})") from None


def _check(config: Any) -> None:  # noqa: ANN401 (any role)
    for setting in fields(config):
        value = getattr(config, setting.name)
        if "read" in setting.metadata and value is not None:
            object.__setattr__(config, setting.name, _read(setting, value, setting.name))
