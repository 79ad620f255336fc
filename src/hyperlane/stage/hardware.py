"""What graphics hardware, drivers and libraries this machine has, without any runtime; and what is to be installed."""

from __future__ import annotations

import ctypes.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hyperlane.stage import cuda

_PCI = Path("/sys/bus/pci/devices")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_NVIDIA, _DISPLAY = "0x10de", "0x03"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What is there; None: the system does not say. `nvidia`, `card`: an NVIDIA card, a card of any vendor.

    `driver`: NVIDIA's. `cuda`: CUDA's runtime can be loaded. `vulkan`: Vulkan's loader is installed.
    """

    nvidia: bool | None = None
    card: bool | None = None
    driver: bool | None = None
    cuda: bool = False
    vulkan: bool = False


def look() -> Hardware:
    """What this machine has."""
    windows = sys.platform == "win32"
    driver = ctypes.util.find_library("nvcuda" if windows else "cuda") is not None or _NVIDIA_DRIVER.exists()
    vendors = tuple(_vendors()) if _PCI.is_dir() else None
    return Hardware(
        nvidia=True if driver else None if vendors is None else _NVIDIA in vendors,
        card=True if driver else None if vendors is None else _has_card(vendors),
        driver=driver,
        cuda=cuda.is_installed(),
        vulkan=ctypes.util.find_library("vulkan-1" if windows else "vulkan") is not None,
    )


def lacks_for_cuda(here: Hardware, *, installed: bool) -> str:
    """What is missing for CUDA besides its ONNX Runtime, if that is `installed`; "" for nothing that is known."""
    if here.nvidia is False:
        return "no NVIDIA card is seen here"
    if here.nvidia and not here.driver:
        return "there is an NVIDIA card without its driver: install that (nvidia-smi shows the card when it works)"
    if installed and not here.cuda:
        return "CUDA's libraries are not found: install hyperlane[cuda], which brings them, or set LD_LIBRARY_PATH"
    return ""


def lacks_for_webgpu(here: Hardware, *, installed: bool) -> str:
    """What is missing for WebGPU besides its plug-in, if that is `installed`; "" for nothing that is known."""
    if here.card is False:
        return "no graphics card is seen here"
    if installed and not here.vulkan and sys.platform == "linux":
        return "Vulkan's loader is missing: install it (Debian, Ubuntu: libvulkan1)"
    return ""


def _vendors() -> Iterator[str]:
    """Of display controllers: VGA, 3D, other."""
    for device in _PCI.iterdir():
        try:
            kind, vendor = ((device / name).read_text(encoding="ascii").strip() for name in ("class", "vendor"))
        except OSError:
            continue
        if kind.startswith(_DISPLAY):
            yield vendor


def _has_card(vendors: tuple[str, ...]) -> bool:
    return any(vendor not in _SCREENS for vendor in vendors)


_SCREENS = frozenset({"0x1234", "0x1013", "0x1a03", "0x102b", "0x15ad", "0x80ee"})
"""Vendors of screens that compute nothing: QEMU's, Cirrus's, those of servers' consoles and of hypervisors."""
