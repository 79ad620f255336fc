"""Which ONNX Runtime is installed, what devices it can compute on, and which of them a worker takes.

A provider is a row of a table. Imports no runtime: it looks at what is installed, and asks the runtime only when told.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hyperlane.core import ElementType
from hyperlane.errors import RuntimeMissing
from hyperlane.stage import cuda
from hyperlane.stage.footprint import Footprint
from hyperlane.stage.hardware import Hardware, lacks_for_cuda, lacks_for_webgpu, look
from hyperlane.stage.options import BlockOffsets

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

    `verified`: the conformance suite was run on it. `status` says what is known of it. `distribution` holds it.
    What its operators need or do better: `packs` weights in a form of its own, which is kept and mapped;
    `half`: activations and KV entries are float16 (the residual stream where the family allows it); `offsets`: form
    of weights with offsets, None for what is asked; `run_tokens`: of a row computed at a time, 0 for what
    `runs.run_tokens` says; `searches_parts`: its TopK and Softmax are slow on one long row;
    `many_rows_from`: it has 4-bit kernels for so many rows and more, 0 for none; see `onnx_sessions.start`;
    `fused_gate`: it has `GatedRMSNorm`; `exact`: its products of quantised weights do not round activations;
    `alone`: one-token rows run one by one; `plugin`: `distribution` is beside any ONNX Runtime, not one of them;
    `needs`: what a machine must have besides;
    `singles`: tokens of a row taken one by one that share a run, to the bits of one run each; 1 where they cannot;
    `beside`: a prompt's tokens and one-token rows can share a run, to the bits of two;
    `least_rows`: fewer rows are padded to so many in a captured step of these kernels, which are slower for one;
    `footprint`: what it takes of its device's memory besides weights and entries, None: as the processor.
    """

    name: str
    ort_name: str
    extra: str
    element: ElementType
    verified: bool
    status: str
    distribution: str
    packs: bool = False
    half: bool = False
    offsets: BlockOffsets | None = None
    run_tokens: int = 0
    searches_parts: bool = False
    many_rows_from: int = 0
    least_rows: int = 1
    footprint: Footprint | None = None
    fused_gate: bool = False
    exact: bool = False
    alone: bool = False
    singles: int = 1
    beside: bool = False
    plugin: bool = False
    needs: str = ""


PROVIDERS = (
    Provider(
        name="cuda",
        ort_name="CUDAExecutionProvider",
        extra="cuda",
        element=ElementType.F16,
        verified=True,
        status="conformance suite run by hand on an H100",
        distribution="onnxruntime-gpu",
        half=True,
        offsets=BlockOffsets.FINE,
        run_tokens=2048,
        searches_parts=True,
        many_rows_from=3,
        least_rows=4,
        footprint=Footprint(runtime=82 << 20, few_rows=430 << 20, node=16 << 10, values=2.0, words=16, unpacks=True),
        needs="check the driver (nvidia-smi) and that CUDA's libraries are found",
        fused_gate=True,
    ),
    Provider(
        name="webgpu",
        ort_name="WebGpuExecutionProvider",
        extra="webgpu",
        element=ElementType.F16,
        verified=True,
        status="conformance suite run with every change, on a Vulkan driver in software",
        distribution="onnxruntime-ep-webgpu",
        half=True,
        offsets=BlockOffsets.EXACT,
        exact=True,
        alone=True,
        plugin=True,
        needs="a graphics card's driver with Vulkan, and its loader (Debian, Ubuntu: libvulkan1)",
    ),
    Provider(
        name="directml",
        ort_name="DmlExecutionProvider",
        extra="",
        element=ElementType.F16,
        verified=False,
        status="never run: Windows alone, and its operators for 4-bit weights and attention were not tried; use webgpu",
        distribution="onnxruntime-directml",
        half=True,
    ),
    Provider(
        name="coreml",
        ort_name="CoreMLExecutionProvider",
        extra="",
        element=ElementType.F16,
        verified=False,
        status="never run: it has no operators for 4-bit weights and attention, which the CPU would do; use webgpu",
        distribution="",
        half=True,
    ),
    Provider(
        name="openvino",
        ort_name="OpenVINOExecutionProvider",
        extra="",
        element=ElementType.F32,
        verified=False,
        status="never run: it compiles for fixed shapes, and attention over KV entries was not tried; use webgpu",
        distribution="onnxruntime-openvino",
    ),
    Provider(
        name="migraphx",
        ort_name="MIGraphXExecutionProvider",
        extra="",
        element=ElementType.F16,
        verified=False,
        status="never run: AMD on Linux, no wheel of it is on the package index; use webgpu",
        distribution="",
        half=True,
    ),
    Provider(
        name="cpu",
        ort_name="CPUExecutionProvider",
        extra="cpu",
        element=ElementType.F32,
        verified=True,
        status="tested with every change",
        distribution="",
        packs=True,
        singles=16,
        beside=True,
    ),
)
"""Best first: what `auto` tries in this order. A provider of no distribution is in all of them."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a worker computes on, and why it was chosen. `index`: which of the provider's devices.

    `single`: it lacks the provider's float16, and computes in float32.
    """

    name: str
    provider: Provider
    runtime_version: str
    reason: str
    index: int = 0
    single: bool = False

    @property
    def element(self) -> ElementType:
        """What its raw links carry, for families that allow it."""
        return ElementType.F32 if self.single else self.provider.element


DeviceCount = Callable[[Provider], int]


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


def provider_of(name: str) -> Provider:
    """The row of that name, which must be in the table."""
    return next(row for row in PROVIDERS if row.name == name)


def choose_device(
    wanted: str,
    installed: Sequence[str] | None = None,
    count: DeviceCount | None = None,
    beside: Sequence[str] | None = None,
    hardware: Hardware | None = None,
) -> Device:
    """The device for `--device`: `auto`, a provider's name, or NAME:INDEX.

    Args:
        wanted: what was asked for.
        installed: the distributions of ONNX Runtime; looked up by default.
        count: says how many devices a provider has here; asked of the driver by default.
        beside: distributions of providers that are installed beside it; looked up by default.
        hardware: what cards, drivers and libraries are here; looked up by default.

    Raises:
        RuntimeMissing: no usable runtime, or the asked device cannot be used.

    """
    runtime = check_runtime(installed)
    counted = count or (hardware_count if wanted == "auto" else device_count)
    here = _Here(runtime, plugins() if beside is None else tuple(beside), counted, hardware)
    if wanted == "auto":
        row, reason = _best(here)
        return Device(row.name, row, here.version, reason, single=_lacks_half(row))
    name, _, place = wanted.partition(":")
    named = next((row for row in PROVIDERS if row.name == name), None)
    if named is None:
        raise RuntimeMissing(f"unknown device '{wanted}'; known: auto, {', '.join(row.name for row in PROVIDERS)}")
    if place and not place.isdecimal():
        raise RuntimeMissing(f"'{wanted}' is no device; write for instance {name}:0")
    why_not = here.why_not(named, int(place or 0))
    if why_not:
        raise RuntimeMissing(f"device '{wanted}' cannot be used: {why_not}; or use --device cpu")
    return Device(wanted, named, here.version, "asked for", int(place or 0), _lacks_half(named))


@dataclass(frozen=True, slots=True)
class _Here:
    """What is installed, as "distribution version", what is beside it, and who counts devices."""

    runtime: str
    beside: Sequence[str]
    count: DeviceCount
    hardware: Hardware | None

    @property
    def version(self) -> str:
        return self.runtime.split()[1]

    def why_not(self, row: Provider, index: int) -> str:
        """What keeps a provider's device from being used, and what to do; "" for nothing."""
        if not row.verified:
            return f"it is not supported yet ({row.status})"
        if row.plugin and row.distribution not in self.beside:
            text = f"{row.distribution} is not installed: install hyperlane[{row.extra}]"
            return self._lacks(row, installed=False) or text
        if not row.plugin and row.distribution and self.runtime.split(maxsplit=1)[0] != row.distribution:
            text = f"{self.runtime} is installed, not {row.distribution}: install hyperlane[{row.extra}] instead"
            return self._lacks(row, installed=False) or text
        found = self.count(row)
        if index >= found:
            text = f"{found or 'no'} such device{'s are' if found > 1 else ' is'} found: {row.needs}"
            return (self._lacks(row, installed=True) if not found else "") or text
        return ""

    def _lacks(self, row: Provider, *, installed: bool) -> str:
        """What the machine itself lacks."""
        if row.name not in _LACKS:
            return ""
        return _LACKS[row.name](look() if self.hardware is None else self.hardware, installed=installed)


class _Lacks(Protocol):
    def __call__(self, here: Hardware, *, installed: bool) -> str: ...


_LACKS: Mapping[str, _Lacks] = {"cuda": lacks_for_cuda, "webgpu": lacks_for_webgpu}


def _best(here: _Here) -> tuple[Provider, str]:
    """The first provider that can be used, and what was against those before it."""
    against: list[str] = []
    for row in PROVIDERS:
        if not row.verified:
            continue
        why_not = here.why_not(row, 0)
        if not why_not:
            return row, "; ".join(against) or "the best there is"
        against.append(f"not {row.name}: {why_not}")
    raise RuntimeMissing("; ".join(against))


def device_count(row: Provider) -> int:
    """How many devices a provider has here, as its driver says."""
    if row.name == "webgpu":
        from hyperlane.stage import onnx_webgpu  # only now: it imports the runtime

        return onnx_webgpu.count()
    return cuda.device_count() if row.name == "cuda" else 1


def hardware_count(row: Provider) -> int:
    """As `device_count`, without drivers that compute on the processor: those must be asked for."""
    found = device_count(row)
    if found and row.name == "webgpu":
        from hyperlane.stage import onnx_webgpu

        return 0 if onnx_webgpu.in_software() else found
    return found


def _lacks_half(row: Provider) -> bool:
    if row.name != "webgpu":
        return False
    from hyperlane.stage import onnx_webgpu

    return not onnx_webgpu.has_half()


def plugins() -> tuple[str, ...]:
    """The providers' distributions that are installed beside a runtime."""
    names = [row.distribution for row in PROVIDERS if row.plugin]
    return tuple(name for name in names if importlib.util.find_spec(name.replace("-", "_")) is not None)
