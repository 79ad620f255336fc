"""Judges what one machine says of itself: its disk, clock, runtime, identity and ports. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hyperlane.cluster.doctor.finding import Finding, note, ok, problem, warning

GIB = 1 << 30
LITTLE_BYTES = 2 * GIB
SOME_BYTES = 10 * GIB
EARLIEST_S = 1_750_000_000.0
"""June 2025, in seconds since 1970: a clock before that was never set."""

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-rocm")
"""Distributions that hold the same package: two of them overwrite each other's files."""


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """The folder that models go to: bytes free on its disk, and whether we may write there."""

    folder: str
    free_bytes: int
    writable: bool


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """Seconds since 1970: now, and the span of this machine's certificate, if it has one."""

    now_s: float
    valid_from_s: float | None = None
    valid_until_s: float | None = None


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """Installed distributions with their versions, and which libraries the system's loader finds."""

    installed: Mapping[str, str]
    libraries: frozenset[str] = frozenset()
    has_nvidia: bool = False


@dataclass(frozen=True, slots=True)
class PortFacts:
    """The worker's address as configured, and who has the port; `taken` None: nobody, "hyperlane": a worker of ours."""

    listen: str
    taken: str | None = None


@dataclass(frozen=True, slots=True)
class IdentityFacts:
    """This machine's node; `trouble`: why its files cannot be used; `cluster` empty: it has joined none."""

    node: str = ""
    cluster: str = ""
    trouble: str = ""
    doors: Sequence[str] = field(default_factory=tuple)


def check_disk(facts: DiskFacts, needed_bytes: int = 0) -> Finding:
    """Whether a model has room."""
    name, free = "disk", f"{facts.free_bytes / GIB:.1f} GiB free for {facts.folder}"
    if not facts.writable:
        return problem(
            name,
            f"{facts.folder} cannot be written",
            "no model can be downloaded or kept",
            "give this user the folder, or choose another with HYPERLANE_PATHS_CACHE",
        )
    if facts.free_bytes < max(LITTLE_BYTES, needed_bytes):
        wanted = f"{max(LITTLE_BYTES, needed_bytes) / GIB:.1f} GiB are wanted"
        return problem(
            name, f"{free}, {wanted}", "a download will fail", "free some, or move the cache: HYPERLANE_PATHS_CACHE"
        )
    if facts.free_bytes < SOME_BYTES:
        return warning(name, free, "one large model may not fit", "free some, or move the cache: HYPERLANE_PATHS_CACHE")
    return ok(name, free)


def check_clock(facts: ClockFacts) -> Finding:
    """Whether certificates are valid by this machine's clock."""
    name, set_it = "clock", "set the clock: `timedatectl set-ntp true` on Linux, the time settings elsewhere"
    if facts.now_s < EARLIEST_S:
        return problem(
            name, "this machine's clock was never set", "every certificate looks as if from the future", set_it
        )
    if facts.valid_from_s is not None and facts.now_s < facts.valid_from_s:
        return problem(
            name,
            f"by this machine's clock its certificate begins in {_span(facts.valid_from_s - facts.now_s)}",
            "the clock is behind that of the machine that made the cluster: no encrypted link can be opened",
            set_it,
        )
    if facts.valid_until_s is not None and facts.now_s > facts.valid_until_s:
        return problem(
            name,
            f"by this machine's clock its certificate ended {_span(facts.now_s - facts.valid_until_s)} ago",
            "no encrypted link can be opened",
            f"if the clock is right, join again with a new token; otherwise {set_it}",
        )
    return ok(name, "the clock is within the certificate's time" if facts.valid_from_s else "the clock has been set")


def check_runtime(facts: RuntimeFacts) -> list[Finding]:
    """Whether there is exactly one ONNX Runtime, with the libraries that its devices need."""
    name = "runtime"
    there = [f"{one} {facts.installed[one]}" for one in RUNTIMES if one in facts.installed]
    if not there:
        return [
            problem(
                name,
                "no ONNX Runtime is installed",
                "this machine can be a head, but no worker",
                'install one: pip install "hyperlane[cpu]", "hyperlane[cuda]" or "hyperlane[webgpu]"',
            )
        ]
    if len(there) > 1:
        return [
            problem(
                name,
                f"{len(there)} ONNX Runtimes are installed: {', '.join(there)}",
                "they overwrite each other's files; which one is used, and whether it works, is luck",
                f"pip uninstall {' '.join(one for one in RUNTIMES if one in facts.installed)}, then install exactly "
                "one extra of hyperlane again",
            )
        ]
    return [ok(name, there[0]), *_missing_libraries(facts)]


def _missing_libraries(facts: RuntimeFacts) -> list[Finding]:
    found = []
    if "onnxruntime-gpu" in facts.installed:
        lacking = [one for one in ("cuda", "cudart", "cublas", "cudnn") if one not in facts.libraries]
        if lacking:
            driver = "install NVIDIA's driver" if "cuda" in lacking else "install CUDA and cuDNN"
            found.append(
                problem(
                    "cuda",
                    f"the CUDA runtime is installed, but these libraries are not found: {', '.join(lacking)}",
                    "the GPU cannot be used",
                    f'{driver}; pip install "onnxruntime-gpu[cuda,cudnn]" brings all but the driver',
                )
            )
    elif facts.has_nvidia:
        found.append(
            note(
                "cuda",
                "there is an NVIDIA GPU, but the runtime for CUDA is not installed",
                "it stays unused",
                'in a fresh environment: pip install "hyperlane[cuda]"',
            )
        )
    if "onnxruntime-ep-webgpu" in facts.installed and "vulkan" not in facts.libraries:
        found.append(
            problem(
                "webgpu",
                "the WebGPU provider is installed, but there is no Vulkan loader",
                "the GPU cannot be used",
                "install it (Debian: libvulkan1) and your GPU's Vulkan driver (Debian: mesa-vulkan-drivers)",
            )
        )
    return found


def check_port(facts: PortFacts) -> Finding:
    """Whether a worker could listen."""
    name = "port"
    if facts.taken is None:
        return ok(name, f"{facts.listen} is free for a worker")
    if facts.taken == "hyperlane":
        return ok(name, f"a worker listens on {facts.listen}")
    return warning(
        name,
        f"{facts.listen} is in use: {facts.taken}",
        "a worker with this address cannot start",
        "choose another port: hyperlane worker --listen HOST:PORT",
    )


def check_identity(facts: IdentityFacts) -> Finding:
    """Whether this machine knows who it is."""
    name = "identity"
    if facts.trouble:
        return problem(
            name, facts.trouble, "this machine can neither join nor serve a cluster", "do what the message says"
        )
    if not facts.cluster:
        return note(
            name,
            "this machine has joined no cluster",
            "no head on another machine can use it",
            "on the head: hyperlane token create; here: hyperlane worker --join TOKEN",
        )
    return ok(name, f"node {facts.node[:8]} of cluster {facts.cluster[:8]}")


def _span(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
