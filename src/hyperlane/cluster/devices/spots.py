"""What each of a host's devices gets: a name, a port, threads, a state directory. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperlane.core import Address
from hyperlane.errors import ConfigError

CPU = "cpu"
PORTS_EACH = 2
"""A control port and the data port behind it."""


@dataclass(frozen=True, slots=True)
class Spot:
    """One worker process to be. `label`: its device, numbered from 2 on where the processor is there several times.

    `state`: its own directory, named after the label, so that it is the same node at the next start. `threads`: of its
    engine.
    """

    device: str
    label: str
    name: str
    listen: Address
    threads: int
    state: Path


def spots(devices: Sequence[str], host: str, listen: Address, threads: int, folder: Path) -> tuple[Spot, ...]:
    """One for each device. `listen`: of the first one, port 0 for any; `threads`: to divide; `folder`: of their state.

    Raises:
        ConfigError: there are not so many ports behind `listen`.

    """
    labels = _labels(devices)
    shares = thread_shares(devices, threads)
    last = listen.port + PORTS_EACH * len(devices) - 1
    if listen.port and last > 65535:
        raise ConfigError(f"--listen {listen}: {len(devices)} devices need ports up to {last}; begin lower")
    return tuple(
        Spot(
            device,
            label,
            f"{host}/{label}",
            Address(listen.host, listen.port + PORTS_EACH * number if listen.port else 0),
            share,
            folder / label.replace(":", "-"),
        )
        for number, (device, label, share) in enumerate(zip(devices, labels, shares, strict=True))
    )


def thread_shares(devices: Sequence[str], threads: int) -> tuple[int, ...]:
    """Threads of each device: the processor's workers share what is left beside one for each GPU, which does the rest.

    At least one each, so that few threads may be counted twice.
    """
    computing = devices.count(CPU)
    if not computing:
        return (max(1, threads // len(devices)),) * len(devices) if devices else ()
    left = max(computing, threads - (len(devices) - computing))
    each, more = divmod(left, computing)
    shares, given = [], 0
    for device in devices:
        if device == CPU:
            shares.append(each + (given < more))
            given += 1
        else:
            shares.append(1)
    return tuple(shares)


def _labels(devices: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    labels = []
    for device in devices:
        seen[device] += 1
        labels.append(device if seen[device] == 1 else f"{device}-{seen[device]}")
    return labels
