"""What a step takes from a frame's arrival to its departure: the real loop of a stage, between links of memory.

Knows an engine and a stage's loop; no device, no socket and no weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hyperlane.core import ElementType, Row, StageSpec
from hyperlane.errors import LinkClosed
from hyperlane.stage.engine import Engine
from hyperlane.stage.loop import StageLoop
from hyperlane.stage.overlap import NEVER
from hyperlane.stage.terms import hello_to
from hyperlane.wire.codec import encode
from hyperlane.wire.frame import Frame, Kind, Message, Role, Sendable
from hyperlane.wire.link import PlacePayload
from hyperlane.wire.reader import FrameReader

ROUNDS = 3
LEAST, MOST = 2, 6
ENOUGH_S = 0.01
SLOW_S = 0.6
"""In each round a step is timed `LEAST` times or more, for `ENOUGH_S`, at most `MOST` times; a slow one only once."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is timed: so many rows of `count` tokens each, after `entries`. `wanted`: of each row the last logits."""

    rows: int
    count: int
    entries: int
    wanted: bool = False

    def laid_out(self) -> list[Row]:
        """Its rows, each in the slot of its number."""
        want = (self.count - 1,) if self.wanted else ()
        return [Row(slot, self.entries, self.count, want) for slot in range(self.rows)]


class StepTimer:
    """Times steps of one engine. Its slots are used as it likes."""

    def __init__(
        self,
        spec: StageSpec,
        engine: Engine,
        before: Callable[[], None] = lambda: None,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        """`before`: what happens before each step that is timed. `tell`: called now and then; may raise."""
        self._spec = spec
        self._engine = engine
        self._before = before
        self._tell = tell
        self._terms = hello_to(spec, Role.UPSTREAM, engine.element).terms()
        self._random = np.random.default_rng(0)

    def fill(self, slots: int, entries: int, chunk: int) -> None:
        """Give each of the first slots so many KV entries."""
        for start in range(0, entries, chunk):
            self._run(self._frame([Row(0, start, min(chunk, entries - start))]), 1)
        for slot in range(1, slots):
            self._engine.copy(0, slot, entries)

    def seconds(self, steps: Sequence[Step]) -> dict[Step, float]:
        """What each takes: all in turn, for several rounds; the least counts.

        What else happens on a machine only ever makes a step slower, and rarely each time.
        """
        frames = {step: self._frame(step.laid_out()) for step in steps}
        found = {step: self._first(frame) for step, frame in frames.items()}
        quick = [step for step in steps if found[step] <= SLOW_S]
        for _ in range(ROUNDS):
            for step in quick:
                found[step] = min(found[step], self._least(frames[step]))
        return found

    def _first(self, frame: bytes) -> float:
        """One run, to make ready what is made once; another one if it was slow, as no more will follow."""
        self._tell()
        seconds = self._run(frame, 1)[0]
        return min(seconds, *self._run(frame, 1)) if seconds > SLOW_S else seconds

    def _least(self, frame: bytes) -> float:
        self._tell()
        times = self._run(frame, LEAST)
        while sum(times) < ENOUGH_S and len(times) < MOST:
            times += self._run(frame, LEAST)
        return min(times)

    def _run(self, frame: bytes, count: int) -> list[float]:
        feed = _Feed(frame, FrameReader(self._terms), count, self._before)
        loop = StageLoop(self._spec, self._engine, feed, feed, NEVER)
        try:
            loop.run()
        except LinkClosed:
            return feed.times

    def _frame(self, rows: Sequence[Row]) -> bytes:
        """A frame of the stage's kind, as it comes over the wire."""
        spec, tokens = self._spec, sum(row.count for row in rows)
        if spec.is_first:
            kind, payload = Kind.TOKENS, self._random.integers(0, spec.model.vocab, tokens, np.int32).tobytes()
        else:
            values = self._random.standard_normal((tokens, spec.model.hidden), np.float32)
            kind, payload = Kind.HIDDEN, _in_element(values, self._engine.element)
        return b"".join(map(bytes, encode(Frame(kind, spec.epoch.counter, 1, tuple(rows), (payload,)))))


class _Feed:
    """Implements `Link`, both ends at once: the same frame again and again, and when each was answered."""

    def __init__(self, frame: bytes, reader: FrameReader, count: int, before: Callable[[], None]) -> None:
        self.times: list[float] = []
        self._frame, self._reader, self._left, self._before = memoryview(frame), reader, count, before
        self._began_s = 0.0

    def recv(self, place: PlacePayload, *, asleep: bool = False) -> Message:
        """See `Link`."""
        if not self._left:
            raise LinkClosed("that was enough")
        self._left -= 1
        self._before()
        self._began_s = time.perf_counter()
        rest, reader = self._frame, self._reader
        while (message := reader.next(place)) is None:
            buffer = reader.buffer()
            count = min(len(buffer), len(rest))
            buffer[:count] = rest[:count]
            reader.received(count)
            rest = rest[count:]
        return message

    def send(self, message: Sendable) -> None:
        """See `Link`."""
        encode(message)
        self.times.append(time.perf_counter() - self._began_s)

    def abort(self) -> None:
        """See `Link`."""

    def close(self) -> None:
        """See `Link`."""


def _in_element(values: np.ndarray[tuple[int, int], np.dtype[np.float32]], element: ElementType) -> bytes:
    if element is ElementType.F16:
        return values.astype(np.float16).tobytes()
    if element is ElementType.BF16:
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.tobytes()
