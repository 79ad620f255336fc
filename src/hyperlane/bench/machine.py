"""Facts of the machine that a figure was measured on, and the memory of its processes."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Machine:
    """What belongs beside every figure."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    runtime: str
    date: str

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, {self.memory_gib:.0f} GiB, {self.system}, "
            f"Python {self.python}, {self.runtime}, {self.date}"
        )


def describe_machine() -> Machine:
    """Facts of this machine, today."""
    return Machine(
        processor=_processor(),
        cores=psutil.cpu_count() or 1,
        memory_gib=psutil.virtual_memory().total / 2**30,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        runtime=_runtime(),
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _runtime() -> str:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "no ONNX Runtime"


def private_bytes(pid: int) -> int:
    """Memory that only this process has (USS), in bytes.

    Raises:
        psutil.NoSuchProcess: it has ended.

    """
    return int(psutil.Process(pid).memory_full_info().uss)
