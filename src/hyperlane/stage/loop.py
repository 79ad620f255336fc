"""The loop of one stage's thread: a frame in, a step, a frame out. Knows no lock, no lease and no other stage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from hyperlane.core import Row, StageSpec
from hyperlane.errors import LinkClosed
from hyperlane.stage.engine import Engine
from hyperlane.stage.overlap import FROM_BYTES, Overlap
from hyperlane.wire import codec
from hyperlane.wire.frame import Copy, Fault, Frame, Kind, Message
from hyperlane.wire.link import Link
from hyperlane.wire.timings import PassedTiming


class PeerFault(Exception):
    """The stage before this one sent FAULT: it is passed on, then the links are dropped."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.cause)
        self.fault = fault


class _Placed(NamedTuple):
    """A frame whose header is there: its rows as they came, those to compute, the kind of frame that is sent for it.

    `bank`: of the engine's buffers, as `Overlap` has it. A frame that is expected is placed before it comes.
    """

    received: tuple[Row, ...]
    rows: tuple[Row, ...]
    answer: Kind
    bank: int | None


class StageLoop:
    """Carries messages of one epoch from one link through an engine to the next, until one of the three fails.

    Payloads are received into the engine's input and sent from its output: no byte is copied in between. Around a large
    frame the next one is received and the last one sent by helper threads; all else is this one's alone.
    Used by one thread; `moved_s` (monotonic), `computing`, `step` and `steps` may be read from any.
    """

    def __init__(
        self, spec: StageSpec, engine: Engine, upstream: Link, downstream: Link, overlap_bytes: int = FROM_BYTES
    ) -> None:
        """`overlap_bytes`: the least payload of a large frame."""
        self._overlap = Overlap(spec, engine.element, upstream, downstream, overlap_bytes)
        self._spec = spec
        self._engine = engine
        self._upstream = upstream
        self._downstream = downstream
        self._header_ns = 0
        self._previous_send_us = 0
        self._placed: _Placed | None = None
        self._place_of = memoryview(bytearray())
        """Where the payload of `_placed` goes."""
        self._ahead: tuple[_Placed, int] | None = None
        """The frame that a helper receives, and when its header came."""
        self.step = 0
        self.steps = 0
        self.computing = False
        self.moved_s = time.monotonic()

    def run(self) -> NoReturn:
        """Serve until something fails; BYE from the stage before this one counts as `LinkClosed`."""
        try:
            self._serve()
        except LinkClosed:
            self._overlap.finish_sending()  # what failed there may be why
            raise
        finally:
            self._overlap.end()

    def _serve(self) -> NoReturn:
        upstream, overlap = self._upstream, self._overlap
        while True:
            ready_ns = time.perf_counter_ns()
            message = upstream.recv(self._place) if overlap.coming is None else self._take_coming(ready_ns)
            self.moved_s = time.monotonic()
            match message:
                case Frame():
                    self._run_frame(message, waited_us=(self._header_ns - ready_ns) // 1000)
                case Copy():
                    self._engine.copy(message.source, message.destination, message.count)
                    overlap.send(message)
                case Fault():
                    raise PeerFault(message)

    def _place(self, frame: Frame) -> memoryview:
        self._header_ns = time.perf_counter_ns()
        if self._placed is None or frame.rows is not self._placed.received:
            self._placed = self._place_in(frame, ahead=False)
            self._place_of = self._input_of(self._placed)
        return self._place_of

    def _place_ahead(self, frame: Frame) -> memoryview:
        """As `_place`, while the frame before it is computed; called by a helper."""
        placed = self._place_in(frame, ahead=True)
        self._ahead = placed, time.perf_counter_ns()
        return self._input_of(placed)

    def _take_coming(self, ready_ns: int) -> Message:
        message = self._overlap.received()
        if isinstance(message, Frame):
            assert self._ahead is not None
            self._placed, header_ns = self._ahead
            self._header_ns = max(header_ns, ready_ns)
        return message

    def _place_in(self, frame: Frame, *, ahead: bool) -> _Placed:
        rows = self._rows_of(frame)
        bank = self._overlap.next_bank if ahead else self._overlap.bank_of(rows)
        return _Placed(frame.rows, rows, self._answers_with(frame), bank)

    def _input_of(self, placed: _Placed) -> memoryview:
        rows, bank = placed.rows, placed.bank
        if not rows:
            return memoryview(bytearray())
        return self._engine.input_buffer(rows) if bank is None else self._engine.input_buffer(rows, bank)

    def _run_frame(self, frame: Frame, waited_us: int) -> None:
        assert self._placed is not None
        _, rows, answer, bank = self._placed
        self.step, self._placed = frame.step, None
        self.computing = True
        header_ns, began_ns = self._header_ns, time.perf_counter_ns()
        if bank is None:
            computed = self._engine.step(rows) if rows else ()
        else:
            self._overlap.compute(rows, bank, self._place_ahead)
            computed = self._engine.step(rows, bank) if rows else ()
        payload = self._passed_on(rows, computed)
        send_ns = time.perf_counter_ns()
        self.computing = False
        timing = PassedTiming(
            self._spec.index,
            waited_us,
            (send_ns - began_ns) // 1000,
            (began_ns - header_ns) // 1000,
            self._previous_send_us,
        )
        passed = codec.encode_passed_on(frame, answer, payload, timing)
        if bank is None:
            self._downstream.send(passed)
        else:
            self._overlap.send(passed, rows)
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
