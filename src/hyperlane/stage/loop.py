"""The loop of one stage's thread: a frame in, a step, a frame out. Knows no lock, no lease and no other thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from hyperlane.core import Row, StageSpec
from hyperlane.stage.engine import Engine
from hyperlane.wire import codec
from hyperlane.wire.frame import Copy, Fault, Frame, Kind
from hyperlane.wire.link import Link
from hyperlane.wire.timings import PassedTiming


class PeerFault(Exception):
    """The stage before this one sent FAULT: it is passed on, then the links are dropped."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.cause)
        self.fault = fault


class _Placed(NamedTuple):
    """A frame whose header is there: its rows as they came, those to compute, the kind of frame that is sent for it.

    A frame that is expected is placed before it comes.
    """

    received: tuple[Row, ...]
    rows: tuple[Row, ...]
    answer: Kind


class StageLoop:
    """Carries messages of one epoch from one link through an engine to the next, until one of the three fails.

    Payloads are received into the engine's input and sent from its output: no byte is copied in between.
    Used by one thread; `moved_s` (monotonic), `computing`, `step` and `steps` may be read from any.
    """

    def __init__(self, spec: StageSpec, engine: Engine, upstream: Link, downstream: Link) -> None:
        self._spec = spec
        self._engine = engine
        self._upstream = upstream
        self._downstream = downstream
        self._header_ns = 0
        self._previous_send_us = 0
        self._placed: _Placed | None = None
        self._place_of = memoryview(bytearray())
        """Where the payload of `_placed` goes."""
        self.step = 0
        self.steps = 0
        self.computing = False
        self.moved_s = time.monotonic()

    def run(self) -> NoReturn:
        """Serve until something fails; BYE from the stage before this one counts as `LinkClosed`."""
        while True:
            ready_ns = time.perf_counter_ns()
            message = self._upstream.recv(self._place)
            self.moved_s = time.monotonic()
            match message:
                case Frame():
                    self._run_frame(message, waited_us=(self._header_ns - ready_ns) // 1000)
                case Copy():
                    self._engine.copy(message.source, message.destination, message.count)
                    self._downstream.send(message)
                case Fault():
                    raise PeerFault(message)

    def _place(self, frame: Frame) -> memoryview:
        self._header_ns = time.perf_counter_ns()
        if self._placed is None or frame.rows is not self._placed.received:
            rows = self._rows_of(frame)
            self._place_of = self._engine.input_buffer(rows) if rows else memoryview(bytearray())
            self._placed = _Placed(frame.rows, rows, self._answers_with(frame))
        return self._place_of

    def _run_frame(self, frame: Frame, waited_us: int) -> None:
        assert self._placed is not None
        _, rows, answer = self._placed
        self.step, self._placed = frame.step, None
        self.computing = True
        began_ns = time.perf_counter_ns()
        payload = self._passed_on(rows, self._engine.step(rows) if rows else ())
        send_ns = time.perf_counter_ns()
        self.computing = False
        timing = PassedTiming(
            self._spec.index,
            waited_us,
            (send_ns - began_ns) // 1000,
            (began_ns - self._header_ns) // 1000,
            self._previous_send_us,
        )
        self._downstream.send(codec.encode_passed_on(frame, answer, payload, timing))
        self._previous_send_us = (time.perf_counter_ns() - send_ns) // 1000
        self.steps += 1
        self.moved_s = time.monotonic()

    def _rows_of(self, frame: Frame) -> tuple[Row, ...]:
        """The rows that this stage computes: of the others it holds the KV entries."""
        stage = self._spec.index
        if not any(row.skip_from for row in frame.rows):
            return frame.rows
        return tuple(row for row in frame.rows if not row.is_skipped(stage))

    def _passed_on(self, rows: Sequence[Row], payload: Sequence[memoryview]) -> Sequence[memoryview]:
        """Of what was computed, what the next stage does not leave out."""
        following = self._spec.index + 1
        if self._spec.is_last or not any(row.skip_from == following for row in rows):
            return payload
        whole = memoryview(b"".join(payload))
        size = len(whole) // sum(row.count for row in rows)
        parts, at = [], 0
        for row in rows:
            if not row.is_skipped(following):
                parts.append(whole[at * size : (at + row.count) * size])
            at += row.count
        return parts

    def _answers_with(self, frame: Frame) -> Kind:
        if not self._spec.is_last:
            return Kind.HIDDEN
        return Kind.LOGITS if frame.rows and frame.rows[0].whole_logits else Kind.CANDIDATES
