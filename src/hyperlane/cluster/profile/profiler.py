"""A worker's own profiles: measured when a head asks for the first time, then remembered on disk.

Knows no RPC. A memory that cannot be read or written is only slower: both are logged and never raised.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from google.protobuf.message import DecodeError

from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.profile import messages
from hyperlane.cluster.profile.device import Bench, measure_device
from hyperlane.cluster.profile.shape import DeviceProfile, ProfileShape
from hyperlane.errors import HyperlaneError, WorkerBusy
from hyperlane.files import replace_file
from hyperlane.stage.orders import LoadProgress

log = logging.getLogger(__name__)

FORMAT = 2
"""Raised whenever something is measured in another way."""

CROWDED_CORES = 0.25
"""Of what others compute beyond the cores that a measurement leaves free; more makes it doubtful."""

DOUBT_S = 600.0
"""A doubtful profile is good for so long; who asks later has it measured again."""

Identity = tuple[str, ...]
"""What must be the same for a profile to hold: device, driver, runtime, provider, threads, version of Hyperlane …"""

Measuring = Callable[[], AbstractContextManager[None]]
"""Keeps stages away while it is entered; raises WorkerBusy if there are any."""


@dataclass(frozen=True, slots=True)
class ProfileShelf:
    """One file for each profile, below a folder."""

    folder: Path

    def load(self, key: str) -> DeviceProfile | None:
        """What was kept, if it can be read."""
        try:
            return messages.device_from(pb.DeviceProfile.FromString(self._place(key).read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, DecodeError, HyperlaneError) as error:
            log.warning("the profile %s cannot be read, measuring again: %s", self._place(key), error)
            return None

    def save(self, key: str, profile: DeviceProfile) -> None:
        """Keep it, in place of what was there; whoever reads meanwhile finds one or the other whole."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self._place(key), messages.device_to(profile).profile.SerializeToString())
        except OSError as error:
            log.warning("a profile cannot be kept in %s: %s", self.folder, error)

    def _place(self, key: str) -> Path:
        return self.folder / f"{key}.profile"


class Profiler:
    """Answers what steps cost here. Every method from any thread."""

    def __init__(self, bench: Callable[[], Bench], identity: Identity, shelf: ProfileShelf) -> None:
        """`bench` is asked for anew at each measurement, with the memory that is free then."""
        self._bench = bench
        self._identity = identity
        self._shelf = shelf

    def profile(
        self,
        shape: ProfileShape,
        alone: Measuring,
        progress: Callable[[LoadProgress], None],
        *,
        again: bool = False,
    ) -> DeviceProfile:
        """What is remembered of this shape, or measured now. `again`: measured, unless stages keep it from that.

        What was measured while other programs were busy is measured again after a while; until one measurement is
        undisturbed the fastest holds.

        Raises:
            WorkerBusy: stages are here, and nothing is remembered.
            HyperlaneError: as `measure_device`, and what `progress` raises.

        """
        key = self._key(shape)
        known = self._shelf.load(key)
        if known is not None and not again and not _is_doubtful(known):
            return known
        try:
            with alone():
                profile = self._measured(shape, progress)
        except WorkerBusy as error:
            if known is None:
                raise
            log.info("not measured again: %s", error)
            return known
        if known is not None and not again and profile.crowded:
            profile = replace(min(known, profile, key=_layer_s), measured_s=profile.measured_s)
        self._shelf.save(key, profile)
        return profile

    def _measured(self, shape: ProfileShape, progress: Callable[[LoadProgress], None]) -> DeviceProfile:
        bench, began_s = self._bench(), time.monotonic()
        others_s = bench.others_s()
        profile = measure_device(shape, bench, progress)
        others = (bench.others_s() - others_s) / max(time.monotonic() - began_s, 1e-9)
        if others <= max(0, (os.cpu_count() or 1) - bench.threads) + CROWDED_CORES:
            return profile
        log.warning("measured while other programs kept %.1f cores busy: this device may be faster", others)
        return replace(profile, crowded=True)

    def _key(self, shape: ProfileShape) -> str:
        # Models of one shape cost the same, whatever they are called.
        nameless = replace(shape, model=replace(shape.model, name="", fingerprint="", layers=0))
        return hashlib.sha256(repr((FORMAT, self._identity, nameless)).encode()).hexdigest()[:32]


def _is_doubtful(profile: DeviceProfile) -> bool:
    return profile.crowded and time.time() - profile.measured_s > DOUBT_S


def _layer_s(profile: DeviceProfile) -> float:
    return profile.layer_decode.seconds(1)
