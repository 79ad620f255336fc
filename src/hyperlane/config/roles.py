"""One frozen configuration per role, every field with its unit, meaning, default and range in one place.

Knows nothing of where values come from, nor of what its users do with them.
"""

# ruff: noqa: RUF009 (fields are made by a helper that returns dataclasses.field)

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import platformdirs

from hyperlane import values
from hyperlane.config.setting import Checked, setting
from hyperlane.core import PROMPT_CHUNKS, Address, WeightForm


@dataclass(frozen=True, slots=True)
class Paths:
    """Where files are kept. `HYPERLANE_HOME` moves both; otherwise they are the platform's own directories."""

    section: ClassVar[str] = "paths"

    cache: Path = setting(
        None, values.path, "downloaded models and weights in ready form; may be deleted whenever nothing runs"
    )
    state: Path = setting(None, values.path, "identity, keys and certificates, epoch counter, chat history; kept")
    machine: str | None = setting(
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
    def devices(self) -> Path:
        """The state directories of this machine's devices, where each is a worker."""
        return self.state / "devices"

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
class ServeConfig(Checked):
    """What a head needs: the model, its workers, and the sizes of the pipeline."""

    section: ClassVar[str] = "serve"

    model: str = setting(
        "smollm2-135m", values.text, "a name of the catalogue, hf.co/OWNER/REPO:QUANTISATION, a URL, a file or a folder"
    )
    workers: tuple[Address, ...] = setting((), values.addresses, "control addresses of workers on other machines")
    local_workers: int | None = setting(
        None, values.whole(0, 64), "worker processes on this machine; unset: 1 if no other worker is given, else 0"
    )
    slots: int = setting(4, values.whole(1, 4096), "KV slots: sequences that are generated at the same time")
    context: int | None = setting(
        None,
        values.whole(16, 1 << 24),
        "tokens of a slot, prompt and answer together; unset: the model's, at most 8192",
    )
    queue: int = setting(64, values.whole(1, 1 << 20), "requests that may wait for a slot before others are refused")
    prompt_chunk: int | None = setting(
        None,
        values.whole(1, 1 << 16),
        "tokens of a prompt that a stage computes together before it passes them on; unset: 16 to 256, whatever has "
        "the first token soonest by what was measured, 64 without measurements",
    )
    frames_in_flight: int | None = setting(
        None,
        values.whole(1, 1024),
        "step frames in the ring at the same time; unset: twice as many as there are stages",
    )
    prefix_cache: str = setting(
        "all",
        values.prefix_cache,
        "what prompts go on from, not computed again: 'all' that a slot holds, 'prompts' (same bits as without), 'off'",
    )
    threads: int | None = setting(
        None, values.whole(1, 1024), "compute threads of each local worker; unset: this machine's cores, divided"
    )
    offline: bool = setting(False, values.yes_or_no, "use models that are on this machine, and ask no hub")
    chat_template: Path | None = setting(
        None, values.path, "file with a Jinja chat template to use; unset: the one in the model's file"
    )
    device: str = setting("auto", values.device, "device of the local workers")
    devices: tuple[str, ...] = setting(
        (),
        values.devices,
        "a local worker for each: all (every GPU), numbers of GPUs or names, as in 0,2 or cuda:0,cpu; cpu may be there "
        "several times. Unset: all, if there are several GPUs and no number or other worker is given",
    )
    memory: int | None = setting(
        None, values.size, "bytes that each local worker may use; unset: what is free, divided among them"
    )
    optimize: str = setting(
        "latency",
        values.one_of("latency", "throughput"),
        "what the plan is best at: latency, the time per token of one stream, or throughput, tokens per second of many",
    )
    use: str | None = setting(
        None,
        values.one_of("all", "best"),
        "which workers take part: all, or the best of them; unset: all if they were named or numbered, the best of "
        "those that were found",
    )
    replicas: int = setting(
        1,
        values.whole(1, 64),
        "pipelines of the model, each over workers of its own: requests go to the least busy one, or to one that holds "
        "their prompt's beginning, and on to another when theirs is lost",
    )
    spare: bool = setting(
        False,
        values.yes_or_no,
        "keep one worker out of the plan, with the stages of the others loaded, so that it takes over at once when one "
        "is lost; where this machine has workers of its own, one more is started",
    )
    layers: tuple[str, ...] = setting(
        (),
        values.texts,
        "a placement by hand, NODE=a:b for each stage: layers a to b - 1 on that worker, NODE its name or address; "
        "local0, local1, … are this machine's own workers",
    )
    wire: str = setting(
        "auto",
        values.one_of("auto", "raw", "int8", "int4"),
        "how hidden states are packed between workers: raw, int8, int4 on every link, or auto, for each link what its "
        "measured speed asks for (raw within a machine)",
    )
    measure: str = setting(
        "auto",
        values.one_of("auto", "again", "never"),
        "what devices and paths are measured for a plan: auto, those that were not before; again, every device; never: "
        "layers go by free memory",
    )
    connect_timeout_s: float = setting(10.0, values.seconds, "seconds until a worker that does not answer is given up")
    load_timeout_s: float = setting(600.0, values.seconds, "seconds that a worker may take to load its stage")
    recovery_timeout_s: float = setting(120.0, values.seconds, "seconds that requests wait when workers were lost")
    replan: bool = setting(True, values.yes_or_no, "move to a better plan while serving, when a worker comes")
    weights: WeightForm | None = setting(
        None,
        values.weights,
        "int4, int8 or fp16: what weights that the model stores in full become; unset: int8 for a checkpoint, fp16 for "
        "a GGUF file",
    )
    paths: Paths = field(default_factory=Paths)

    @property
    def step_tokens(self) -> int:
        """Tokens that one step frame may hold: a prompt's piece beside one token of every slot, a quarter at least."""
        chunk = self.prompt_chunk or PROMPT_CHUNKS[-1]
        return chunk + 1 + max(self.slots, chunk // 3)

    @property
    def local_worker_count(self) -> int:
        """Worker processes to start on this machine, the spare included."""
        asked = self.local_workers if self.local_workers is not None else int(not self.workers)
        return asked + 1 if asked and self.spare else asked

    @property
    def names_workers(self) -> bool:
        """Whether it says which workers there are."""
        return bool(self.workers or self.devices or self.local_workers is not None)

    @property
    def uses_all(self) -> bool:
        """Whether no worker is to be left out of the plan."""
        return self.use == "all" or (self.use is None and self.names_workers)


@dataclass(frozen=True, slots=True)
class WorkerConfig(Checked):
    """What one worker process needs."""

    section: ClassVar[str] = "worker"

    listen: Address | None = setting(
        None,
        values.address,
        "address of the control port, the data port is the next free one, a second device has the two after it; "
        "unset: port 7420, of every address if this machine has joined a cluster, else of 127.0.0.1",
    )
    join: str | None = setting(None, values.text, "token with which this machine joins a cluster, once")
    credentials: str | None = setting(
        None,
        values.text,
        "folder of the certificate to use, or 'none' for plain text on loopback; heads say it to their own workers",
    )
    device: str = setting("auto", values.device, "device that this worker computes on")
    devices: tuple[str, ...] = setting(
        (),
        values.devices,
        "a worker process for each: all (every GPU), numbers of GPUs or names, as in 0,2 or cuda:0,cpu; cpu may be "
        "there several times. Unset: all, if there are several GPUs",
    )
    name: str | None = setting(
        None, values.node_name, "what this worker is called in plans and status; unset: its machine's name and port"
    )
    threads: int | None = setting(
        None, values.whole(1, 1024), "compute threads, of all devices together; unset: all usable cores"
    )
    memory: int | None = setting(
        None, values.size, "bytes that this worker, or each of its devices, may use; unset: what is free"
    )
    drain_s: float = setting(
        30.0, values.seconds, "seconds that a worker told to stop waits until others have its layers"
    )
    announce: bool = setting(
        False,
        values.yes_or_no,
        "print one JSON line with the ports, exit when standard input ends, and look at no `devices`",
    )
    paths: Paths = field(default_factory=Paths)


@dataclass(frozen=True, slots=True)
class JoinConfig(Checked):
    """Where machines join the cluster of this head."""

    section: ClassVar[str] = "join"

    open: bool = setting(True, values.yes_or_no, "let machines that have a token join while the model is served")
    listen: Address = setting(Address("::", 7419), values.address, "address where machines join")
    advertise: tuple[Address, ...] = setting(
        (), values.addresses, "addresses that tokens name; unset: this machine's own on its networks"
    )
    paths: Paths = field(default_factory=Paths)


@dataclass(frozen=True, slots=True)
class DiscoveryConfig(Checked):
    """How machines of a cluster find each other."""

    section: ClassVar[str] = "discovery"

    mdns: bool = setting(True, values.yes_or_no, "advertise and look for machines over mDNS")
    addresses: tuple[Address, ...] = setting(
        (), values.addresses, "control addresses of workers that may be there, for networks without multicast"
    )
    interfaces: tuple[str, ...] = setting(
        (), values.texts, "interfaces to look on; unset: all that lead to other machines"
    )
    loopback: bool = setting(False, values.yes_or_no, "look on this machine's own interface too, for tests")
    wait_s: float = setting(3.0, values.seconds, "seconds that a starting head waits for machines to be found")


@dataclass(frozen=True, slots=True)
class CacheConfig(Checked):
    """What a machine keeps of weights."""

    section: ClassVar[str] = "cache"

    limit: int | None = setting(
        None,
        values.size,
        "bytes that weights may take in the cache when they are not in use; unset: what `hyperlane cache limit` set, "
        "else all but a tenth of the disk",
    )
    paths: Paths = field(default_factory=Paths)


@dataclass(frozen=True, slots=True)
class ApiConfig(Checked):
    """What the HTTP edge needs."""

    section: ClassVar[str] = "api"

    host: str = setting("127.0.0.1", values.text, "address that the HTTP server listens on")
    port: int = setting(8000, values.whole(0, 65535), "port of the HTTP server; 0: any free one")
    key: tuple[str, ...] | None = setting(
        None,
        values.some_texts,
        "keys, any of which clients must send as a bearer token; unset: none is asked for, unless there is a keys_file",
    )
    keys_file: Path | None = setting(
        None,
        values.path,
        "TOML file with a section for each user: [NAME] with key or sha256, and that key's own limits; read again when "
        "it changes",
    )
    key_concurrent: int | None = setting(
        None,
        values.whole(1, 1 << 20),
        "answers that one key may have under way at once, waiting ones included; unset: no limit",
    )
    key_requests_per_minute: int | None = setting(
        None, values.whole(1, 1 << 40), "requests that one key may send a minute; unset: no limit"
    )
    key_tokens_per_minute: int | None = setting(
        None, values.whole(1, 1 << 40), "tokens of prompts and answers that one key may use a minute; unset: no limit"
    )
    request_timeout_s: float | None = setting(
        None,
        values.seconds,
        "seconds until an answer must be complete, its waiting included, or it ends with an error; unset: no limit",
    )
    cors_origins: tuple[str, ...] = setting(
        (),
        values.texts,
        "web origins whose pages may call, '*' for all; unset: all if a key is asked for, else pages of this machine",
    )
    hosts: tuple[str, ...] = setting(
        (), values.texts, "further names in the Host header that a server on loopback answers to, '*' for all"
    )
    names: tuple[str, ...] = setting((), values.texts, "further names that requests may give the model")
    heartbeat_s: float = setting(
        15.0, values.seconds, "seconds of silence in a stream after which a comment line keeps proxies from closing it"
    )
    access_log: bool = setting(False, values.yes_or_no, "write a line to standard error for each HTTP request")
    drain_s: float = setting(5.0, values.seconds, "seconds that running answers may take to end after a stop signal")
    max_body: int = setting(8 << 20, values.size, "bytes that a request's body may have")

    @property
    def asks_for_key(self) -> bool:
        """Whether clients must show one."""
        return bool(self.key or self.keys_file)
