"""Looks at this machine: disk, clock, runtime, port, identity. Judges nothing."""

from __future__ import annotations

import ctypes.util
import errno
import os
import shutil
import socket
import sys
import time
from importlib import metadata
from pathlib import Path

import psutil

from hyperlane.cluster.discovery.advert import short_cluster
from hyperlane.cluster.doctor.machine_checks import (
    RUNTIMES,
    ClockFacts,
    DiskFacts,
    IdentityFacts,
    PortFacts,
    RuntimeFacts,
)
from hyperlane.cluster.trust.binding import Machine
from hyperlane.cluster.trust.credentials import NodeCredentials
from hyperlane.cluster.trust.node import node_identity
from hyperlane.core import Address
from hyperlane.errors import NotTrusted

_LIBRARIES = ("cuda", "cudart", "cublas", "cudnn", "vulkan")
_WINDOWS_NAMES = {"cuda": "nvcuda", "vulkan": "vulkan-1"}
_PACKAGED = {"cudart": "nvidia-cuda-runtime", "cublas": "nvidia-cublas", "cudnn": "nvidia-cudnn"}
_ROLES = ("head", "worker")


def disk(folder: Path) -> DiskFacts:
    """The disk that a folder is on, or would be."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    return DiskFacts(str(folder), shutil.disk_usage(place).free, os.access(place, os.W_OK))


def clock(credentials: NodeCredentials | None) -> ClockFacts:
    """The clock, and the certificate's span."""
    if credentials is None:
        return ClockFacts(time.time())
    certificate = credentials.certificate
    return ClockFacts(time.time(), certificate.since.timestamp(), certificate.until.timestamp())


def runtime() -> RuntimeFacts:
    """What is installed in this environment, and which libraries the system finds."""
    names = (*RUNTIMES, "onnxruntime-ep-webgpu")
    installed = {name: version for name in names if (version := _version(name))}
    packages = {(one.metadata["Name"] or "").lower() for one in metadata.distributions()}
    libraries = {name for name in _LIBRARIES if _finds(name)}
    libraries |= {name for name, start in _PACKAGED.items() if any(one.startswith(start) for one in packages)}
    has_nvidia = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    return RuntimeFacts(installed, frozenset(libraries), has_nvidia)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _finds(library: str) -> bool:
    name = _WINDOWS_NAMES.get(library, library) if sys.platform == "win32" else library
    return ctypes.util.find_library(name) is not None


def port(listen: Address) -> PortFacts:
    """Whether the worker's port is free, and who has it if not."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((listen.host, listen.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return PortFacts(str(listen), _holder(listen.port))
            return PortFacts(str(listen), error.strerror or str(error))
    return PortFacts(str(listen))


def _holder(number: int) -> str:
    """The program that listens on a port, as far as the system tells."""
    try:
        listening = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        pid = next((one.pid for one in listening if one.laddr and one.laddr.port == number and one.pid), None)
        command = psutil.Process(pid).cmdline() if pid else []
    except psutil.Error:
        return "by another program"
    if any(Path(word).name.startswith("hyperlane") or word == "hyperlane" for word in command):
        return "hyperlane"
    return f"by {' '.join(command)[:80]} (process {pid})" if command else "by another program"


def identity(trust: Path, machine: Machine | None) -> tuple[IdentityFacts, NodeCredentials | None]:
    """Who this machine is, and what it shows. Makes nothing."""
    try:
        node = node_identity(trust, machine).hex() if (trust / "node.json").exists() else ""
        found = [one for role in _ROLES if (one := NodeCredentials.load(trust / role)) is not None]
    except (NotTrusted, OSError) as error:
        return IdentityFacts(trouble=str(error)), None
    credentials = found[0] if found else None
    return IdentityFacts(node, short_cluster(credentials.cluster) if credentials else ""), credentials
