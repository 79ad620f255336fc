"""Which ONNX Runtime is installed, what devices it can compute on, and which of them a worker takes.

A provider is a row of a table. Imports no runtime: it looks at what is installed, and asks the runtime only when told.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from hyperlane.core import ElementType
from hyperlane.errors import RuntimeMissing

DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-silicon",
    "ort-nightly",
    "ort-nightly-gpu",
)
"""Distributions that all install the package `onnxruntime`, and so overwrite each other's files."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One execution provider. `extra`: which of our extras installs it, "" for none.

    `verified`: the conformance suite was run on it. `status` says what is known of it.
    """

    name: str
    ort_name: str
    extra: str
    element: ElementType
    verified: bool
    status: str


PROVIDERS = (
    Provider("cuda", "CUDAExecutionProvider", "cuda", ElementType.F16, False, "not run yet"),
    Provider("webgpu", "WebGpuExecutionProvider", "webgpu", ElementType.F16, False, "not run yet"),
    Provider("cpu", "CPUExecutionProvider", "cpu", ElementType.F32, True, "tested with every change"),
)
"""Best first: what `auto` tries in this order."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a worker computes on, and why it was chosen."""

    name: str
    provider: Provider
    runtime_version: str
    reason: str


def installed_runtimes() -> tuple[str, ...]:
    """The distributions of ONNX Runtime that are installed here, with their versions."""
    found = []
    for name in DISTRIBUTIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def check_runtime(installed: Sequence[str] | None = None) -> str:
    """The one ONNX Runtime that is installed, as "distribution version".

    Raises:
        RuntimeMissing: there is none, or there are two, which break each other.

    """
    found = installed_runtimes() if installed is None else tuple(installed)
    if len(found) > 1:
        both = " and ".join(found)
        names = " ".join(one.split()[0] for one in found)
        raise RuntimeMissing(
            f"{both} are both installed and overwrite each other's files; "
            f"run 'pip uninstall {names}', then install one of them again, with hyperlane[cpu] or hyperlane[cuda]"
        )
    if not found:
        if importlib.util.find_spec("onnxruntime") is not None:
            return "onnxruntime unknown"
        raise RuntimeMissing(
            "no ONNX Runtime is installed; install exactly one of hyperlane[cpu], hyperlane[cuda], hyperlane[webgpu]"
        )
    return found[0]


def choose_device(wanted: str, installed: Sequence[str] | None = None) -> Device:
    """The device for `--device`: `auto`, or a provider's name.

    Raises:
        RuntimeMissing: no usable runtime, or the asked device cannot be used.

    """
    runtime = check_runtime(installed)
    name = wanted.partition(":")[0]
    row = next((row for row in PROVIDERS if row.name == name), None)
    if name != "auto" and row is None:
        raise RuntimeMissing(f"unknown device '{wanted}'; known: auto, {', '.join(row.name for row in PROVIDERS)}")
    if row is not None and not row.verified:
        raise RuntimeMissing(f"device '{wanted}' is not supported yet ({row.status}); use --device cpu")
    chosen = row or next(row for row in PROVIDERS if row.verified)
    reason = "asked for" if row else "the best provider that is verified"
    return Device(chosen.name, chosen, runtime.split()[1], reason)
