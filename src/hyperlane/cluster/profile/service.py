"""The worker's side of Profile and MeasurePath: requests → measurements → responses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any

from hyperlane.cluster.link_dialler import LinkDialler
from hyperlane.cluster.profile import messages
from hyperlane.cluster.profile.messages import PathOrder, PathResult
from hyperlane.cluster.profile.profiler import Profiler
from hyperlane.cluster.profile.shape import DeviceProfile
from hyperlane.core import Address
from hyperlane.errors import ConfigError, HyperlaneError, LoadFailed
from hyperlane.stage.host import StageHost
from hyperlane.stage.orders import LoadProgress
from hyperlane.wire.probe import measure_path


class ProfileService:
    """What `WorkerService` answers these calls with. `profiler` None: nothing can be measured here."""

    def __init__(self, host: StageHost, profiler: Profiler | None, dialler: LinkDialler) -> None:
        self._host = host
        self._profiler = profiler
        self._dialler = dialler

    async def profile(self, request: Any) -> AsyncGenerator[Any, None]:  # noqa: ANN401 (generated messages are untyped)
        """Progress, then a profile; leaving the iteration ends the measurement at its next step.

        Raises:
            HyperlaneError: as `Profiler.profile`.

        """
        if self._profiler is None:
            raise ConfigError("this worker has no engine that could be measured")
        shape, profiler, again = messages.profile_from(request), self._profiler, bool(request.again)
        reports: asyncio.Queue[LoadProgress | None] = asyncio.Queue()
        loop, left = asyncio.get_running_loop(), threading.Event()

        def report(progress: LoadProgress) -> None:
            if left.is_set():
                raise LoadFailed("the measurement was given up: the head's call ended")
            loop.call_soon_threadsafe(reports.put_nowait, progress)

        def measure() -> DeviceProfile:
            try:
                return profiler.profile(shape, self._host.measuring, report, again=again)
            finally:
                loop.call_soon_threadsafe(reports.put_nowait, None)

        measuring = asyncio.create_task(asyncio.to_thread(measure))
        try:
            while (progress := await reports.get()) is not None:
                yield messages.measuring_to(progress)
            yield messages.device_to(await measuring)
        finally:
            left.set()
            # Whoever left hears no more of it; the thread ends by itself, and its outcome was asked for.
            measuring.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def paths(self, request: Any) -> Any:  # noqa: ANN401
        """One address after another; an address that cannot be measured is part of the answer."""
        order = messages.path_from(request)
        return messages.results_to([await asyncio.to_thread(self._path, order, target) for target in order.targets])

    def _path(self, order: PathOrder, target: Address) -> PathResult:
        try:
            if order.node is None:
                self._dialler.check_plain(target)
            cost = measure_path(target, order.head, self._dialler.tls(order.node) if order.node else None)
        except HyperlaneError as error:
            return PathResult(target, failure=str(error))
        return PathResult(target, cost.rtt_s, cost.out_bytes_per_s)
