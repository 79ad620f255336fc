"""Which devices of this machine get a worker each, of what `--devices` says. Imports no runtime by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from hyperlane.errors import ConfigError, RuntimeMissing
from hyperlane.stage.providers import Device, Provider, choose_device, hardware_count

CPU = "cpu"
ALL = "all"

Choose = Callable[[str], Device]
"""As `providers.choose_device`."""

Count = Callable[[Provider], int]


def gpus(choose: Choose = choose_device, count: Count = hardware_count) -> tuple[str, ...]:
    """The GPUs of the best provider that can be used here, as NAME:INDEX; none where that is the processor.

    Raises:
        RuntimeMissing: no usable runtime is installed.

    """
    best = choose("auto").provider
    return () if best.name == CPU else tuple(f"{best.name}:{index}" for index in range(count(best)))


def devices_of(asked: Sequence[str], choose: Choose = choose_device, count: Count = hardware_count) -> tuple[str, ...]:
    """What is asked for, as names that `--device` takes, in that order. `all`: every GPU, or the processor without one.

    Raises:
        ConfigError: a GPU is there twice.
        RuntimeMissing: one is not here, or cannot be used.

    """
    found: list[str] = []
    for word in asked:
        found += _of_word(word, choose, partial(gpus, choose, count))
    twice = [name for name, times in Counter(found).items() if times > 1 and name != CPU]
    if twice:
        raise ConfigError(f"--devices has {twice[0]} twice: a GPU gets one process")
    return tuple(found)


def _of_word(word: str, choose: Choose, here: Callable[[], Sequence[str]]) -> Sequence[str]:
    if word == ALL:
        return here() or (CPU,)
    if word.isdecimal():
        known = here()
        if int(word) >= len(known):
            there = (
                f"there are {', '.join(known)}" if known else f"there is none that can be used ({_why_none(choose)})"
            )
            raise RuntimeMissing(f"--devices names GPU {word}: {there}")
        return (known[int(word)],)
    device = choose(word)  # says why, where it cannot be used
    return (CPU if device.provider.name == CPU else f"{device.provider.name}:{device.index}",)


def _why_none(choose: Choose) -> str:
    return choose("auto").reason
