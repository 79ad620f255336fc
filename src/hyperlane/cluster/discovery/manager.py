"""A scout in a thread of its own, for programs: snapshots, waiting, and joins and leaves as they happen."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, Protocol, Self, TypeVar

from hyperlane.cluster.discovery.advert import Heard, NodeKind
from hyperlane.cluster.discovery.scout import Found, Scout
from hyperlane.cluster.membership import Change, Duplicate, MemberState
from hyperlane.errors import WorkerUnreachable

T = TypeVar("T")


class Scouting(Protocol):
    """A scout with what belongs to it: `finding.Lookout`."""

    scout: Scout

    async def start(self) -> None:
        """Begin to look; raises OSError."""
        ...

    async def close(self) -> None:
        """End everything. Idempotent."""
        ...


OpenScouting = Callable[[], Awaitable[Scouting]]
"""Makes one inside the event loop that it will live in."""


class Discovery:
    """Looks for workers from `start` (or `with`, or `async with`) to `close`. Every method from any thread."""

    def __init__(self, open_scouting: OpenScouting) -> None:
        self._open_scouting = open_scouting
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = asyncio.Event()
        self._scout: Scout | None = None

    # --- from beginning to end -------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to look. Idempotent.

        Raises:
            HyperlaneError: the identity or the certificate of this machine cannot be used.

        """
        if self._thread is None:
            ready: concurrent.futures.Future[None] = concurrent.futures.Future()
            self._thread = threading.Thread(target=self._run, args=(ready,), name="discovery", daemon=True)
            self._thread.start()
            try:
                ready.result()
            except BaseException:
                self.close()
                raise
        return self

    def close(self) -> None:
        """Stop looking. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None and self._loop is not None:
            with suppress(RuntimeError):  # its loop has ended already
                self._loop.call_soon_threadsafe(self._stop.set)
            thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    # --- what is there ---------------------------------------------------------------------------------------

    @property
    def workers(self) -> tuple[Found, ...]:
        """Workers that can be used now."""
        return self.found(MemberState.READY)

    def found(self, *states: MemberState) -> tuple[Found, ...]:
        """Workers in one of these states; everybody when none is named."""
        return self._call(lambda scout: scout.found(*states))

    def duplicates(self) -> tuple[Duplicate, ...]:
        """Machines that share a node's identity, by name."""
        return self._call(Scout.duplicates)

    def heads(self) -> tuple[Heard, ...]:
        """Heads of this cluster that advertise themselves."""
        return self._call(lambda scout: scout.heard(NodeKind.HEAD))

    def strangers(self) -> tuple[Heard, ...]:
        """Workers of other clusters on this LAN, or of none. They are left alone."""
        return self._call(lambda scout: scout.heard(NodeKind.WORKER, others=True))

    # --- waiting ---------------------------------------------------------------------------------------------

    def wait_for(self, count: int, timeout: float | None = None) -> tuple[Found, ...]:
        """Wait until so many workers can be used; all that can.

        Raises:
            WorkerUnreachable: there were not so many within `timeout` seconds; with who was there, and why not more.

        """
        return self._wait(self._future(self._wait_ready(count, timeout)))

    async def await_for(self, count: int, timeout: float | None = None) -> tuple[Found, ...]:
        """`wait_for` for a coroutine."""
        return await asyncio.wrap_future(self._future(self._wait_ready(count, timeout)))

    def changes(self) -> Changes:
        """Joins, leaves and everything between, as they happen: for `for` and for `async for`.

        Begins with a join for every worker that is there already; ends when the manager is closed.
        """
        return Changes(self, self._call(Scout.changes))

    # --- inside ----------------------------------------------------------------------------------------------

    async def _wait_ready(self, count: int, timeout_s: float | None) -> tuple[Found, ...]:
        scout = self._open()
        try:
            async with asyncio.timeout(timeout_s):
                return await scout.wait_ready(count)
        except TimeoutError:
            raise WorkerUnreachable(_too_few(scout, count, timeout_s)) from None

    def _open(self) -> Scout:
        if self._scout is None:
            raise WorkerUnreachable("this discovery is closed; start it, or use it in a `with` block")
        return self._scout

    def _call(self, ask: Callable[[Scout], T]) -> T:
        async def answer() -> T:
            return ask(self._open())

        return self._wait(self._future(answer()))

    def _future(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        if self._loop is None or self._thread is None:
            work.close()
            self._open()
            raise WorkerUnreachable("this discovery is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait(self, future: concurrent.futures.Future[T]) -> T:
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise WorkerUnreachable("this discovery was closed") from None
        except BaseException:
            future.cancel()
            raise

    def _run(self, ready: concurrent.futures.Future[None]) -> None:
        asyncio.run(self._live(ready))

    async def _live(self, ready: concurrent.futures.Future[None]) -> None:
        """The supervisor: everything that is opened here is closed here."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            scouting = await self._open_scouting()
        except BaseException as error:  # noqa: BLE001 (raised where `start` waits)
            ready.set_exception(error)
            return
        try:
            await scouting.start()
            self._scout = scouting.scout
            ready.set_result(None)
            await self._stop.wait()
        except OSError as error:
            ready.set_exception(WorkerUnreachable(f"cannot look for workers: {error}"))
        finally:
            self._scout = None
            await scouting.close()


class Changes:
    """A stream of changes that one reader iterates, from a thread or from a coroutine."""

    def __init__(self, discovery: Discovery, queue: asyncio.Queue[Change]) -> None:
        self._discovery = discovery
        self._queue = queue

    def __iter__(self) -> Iterator[Change]:
        return self

    def __next__(self) -> Change:
        try:
            return self._discovery._wait(self._discovery._future(self._queue.get()))
        except WorkerUnreachable:
            raise StopIteration from None

    def __aiter__(self) -> AsyncIterator[Change]:
        return self

    async def __anext__(self) -> Change:
        try:
            future = self._discovery._future(self._queue.get())
        except WorkerUnreachable:
            raise StopAsyncIteration from None
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._discovery._thread is None:
                raise StopAsyncIteration from None
            raise


def _too_few(scout: Scout, count: int, timeout_s: float | None) -> str:
    """Why there are not enough workers, for people."""
    ready = scout.found(MemberState.READY)
    waiting = scout.found(MemberState.JOINING, MemberState.SUSPECT)
    lines = [f"{len(ready)} of {count} workers are ready after {timeout_s:g} s"]
    lines += [f"  '{one.member.claim.name}' is {one.member.state}: {one.member.reason or 'asked'}" for one in waiting]
    lines += [f"  {duplicate}" for duplicate in scout.duplicates()]
    others = {heard.advert.name for heard in scout.heard(NodeKind.WORKER, others=True)}
    if others:
        lines.append(f"  of other clusters, or of none: {', '.join(sorted(others))}")
    lines.append("start `hyperlane worker` on the other machines; `hyperlane doctor` says what may be in the way")
    return "\n".join(lines)
