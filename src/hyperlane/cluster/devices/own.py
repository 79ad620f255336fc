"""Which device each worker of the head's own machine computes on, and with how many threads. Imports no runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hyperlane.cluster.devices.spots import CPU, thread_shares
from hyperlane.config import ServeConfig
from hyperlane.errors import ConfigError, RuntimeMissing
from hyperlane.stage import devices

AUTO = "auto"

Gpus = Callable[[], Sequence[str]]
DevicesOf = Callable[[Sequence[str]], Sequence[str]]


def own_devices(
    config: ServeConfig, gpus: Gpus = devices.gpus, devices_of: DevicesOf = devices.devices_of
) -> tuple[str, ...]:
    """A device for each local worker: those asked for; every GPU, where there are several and nothing was asked.

    Raises:
        ConfigError: several devices and one, or several devices and a number, are asked for at once.
        RuntimeMissing: a device that is asked for cannot be used.

    """
    if config.devices:
        if config.device != AUTO or config.local_workers is not None:
            other = "--device" if config.device != AUTO else "--local-workers"
            raise ConfigError(f"--devices is a worker for each device: give it or {other}, not both")
        return tuple(devices_of(config.devices))
    count = config.local_worker_count
    if config.device == AUTO and config.local_workers is None and count:
        found = _gpus(gpus)
        if len(found) > 1:
            return found
    return (config.device,) * count


def own_threads(config: ServeConfig, places: Sequence[str], cores: int) -> tuple[int, ...]:
    """Compute threads of each; those on the processor share what GPUs leave, and a spare computes nothing."""
    if config.threads:
        return (config.threads,) * len(places)
    if all(place in {AUTO, CPU} for place in places):
        return (max(1, cores // max(1, len(places) - config.spare)),) * len(places)
    return thread_shares(places, cores)


def _gpus(gpus: Gpus) -> tuple[str, ...]:
    try:
        return tuple(gpus())
    except RuntimeMissing:
        return ()  # the one worker that is started then says so, with what to install
