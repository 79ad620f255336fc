"""Runs a command where WebGPU finds a device: this machine's, or a Vulkan driver that computes on the processor.

    python scripts/with_vulkan.py COMMAND …

Such a driver is Mesa's, where it is new enough, or SwiftShader, which Debian's Chromium brings: fetched with apt and
unpacked beside the environment, not installed. Ends with 1, and says what is missing, where there is none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

SOFTWARE, DRIVERS = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", "VK_DRIVER_FILES"
PROBE = "from hyperlane.stage import onnx_webgpu; raise SystemExit(onnx_webgpu.count() == 0)"
PROBE_S, FETCH_S = 120, 300
FOLDER = Path(sys.prefix) / "vulkan"
PACKAGE, WANTED = "chromium-common", "*vk_swiftshader*"
DOWNLOAD = f"apt-get download -q {PACKAGE} || {{ apt-get update -q && apt-get download -q {PACKAGE}; }}"
"""A bare machine has no list of packages yet."""

SYSTEM = Path("/usr/share/vulkan/icd.d")


def main() -> None:
    """Find a driver, say which, and become the command."""
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} COMMAND …")
    for name, added in drivers():
        environ = {**os.environ, SOFTWARE: "1", **added}
        if computes(environ):
            print(f"WebGPU computes on {name}", flush=True)
            sys.exit(subprocess.run(sys.argv[1:], env=environ, check=False).returncode)
    sys.exit(
        "no WebGPU device: it needs onnxruntime-ep-webgpu, libvulkan1 and a Vulkan driver, a card's or one that "
        f"computes on the processor (mesa-vulkan-drivers 23 or newer, or SwiftShader; name its icd.json in {DRIVERS})"
    )


def drivers() -> Iterator[tuple[str, Mapping[str, str]]]:
    """What to try, in turn, and the variables that choose it."""
    yield "this machine's device", {}
    for file in sorted(SYSTEM.glob("lvp_icd*.json")):
        yield "Mesa's driver in software", {DRIVERS: str(file)}
    for file in sorted(FOLDER.rglob("*swiftshader*.json")) or fetched():
        yield "SwiftShader", {DRIVERS: str(file)}


def computes(environ: Mapping[str, str]) -> bool:
    """Whether a device computes; asked in a process of its own, since drivers may end theirs."""
    probe = subprocess.run(
        [sys.executable, "-c", PROBE], env=environ, check=False, timeout=PROBE_S, capture_output=True
    )
    return probe.returncode == 0


def fetched() -> list[Path]:
    """SwiftShader from Debian's package of Chromium; nothing where there is none, or no apt."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        for line in (DOWNLOAD, unpack()):
            subprocess.run(["sh", "-c", line], cwd=FOLDER, check=True, timeout=FETCH_S, capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"SwiftShader could not be fetched: {error}", file=sys.stderr)
    return sorted(FOLDER.rglob("*swiftshader*.json"))


def unpack() -> str:
    """Take the driver out of the package, and remove that."""
    return f"for deb in {PACKAGE}*.deb; do dpkg-deb --fsys-tarfile $deb | tar -x --wildcards '{WANTED}'; rm $deb; done"


if __name__ == "__main__":
    main()
