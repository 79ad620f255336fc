"""What the head's own loop takes for a frame and for a token: the real one, with a ring that answers at once.

Knows no worker and no socket: what those cost is part of the paths.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from hyperlane.cluster.planner.facts import HeadCost
from hyperlane.core import (
    CANDIDATES_K,
    GenerationRequest,
    LayerRange,
    ModelFacts,
    Plan,
    Precision,
    SamplingParams,
    StagePlan,
    StageTiming,
    WorkerFacts,
)
from hyperlane.head.head import Head
from hyperlane.head.options import HeadOptions
from hyperlane.wire.candidates import Candidates, join
from hyperlane.wire.codec import encode
from hyperlane.wire.frame import Copy, Frame, Kind, pass_on
from hyperlane.wire.limits import Limits, Terms
from hyperlane.wire.reader import FrameReader, place_afresh

ANSWER = 60
STREAMS = 4
CONTEXT = 256
WARM_FRAMES = 10
TIMEOUT_S = 30.0
_EPOCH = 1


def measure_head(model: ModelFacts, worker: WorkerFacts) -> HeadCost:
    """Serve some made-up answers, one stream and several, and see what takes how long. Blocks for a moment.

    Args:
        model: of which vocabulary the candidates are.
        worker: any one; nothing is asked of it.

    """
    one, several = _Timed(model, worker, 1), _Timed(model, worker, STREAMS)
    token_s = max(0.0, several.turn_s - one.turn_s) / (STREAMS - 1)
    publish_s = max(0.0, several.publish_s - one.publish_s) / (STREAMS - 1)
    return HeadCost(max(0.0, one.turn_s - token_s), token_s, publish_s)


class _Timed:
    """Median seconds from a frame's arrival until the next one has left, and from then until the head looks again."""

    def __init__(self, model: ModelFacts, worker: WorkerFacts, streams: int) -> None:
        stage = StagePlan(0, worker, LayerRange(0, model.layers), 0, 0, 0)
        plan = Plan(model, (stage,), streams, CONTEXT, (Precision.RAW, Precision.RAW))
        ring, head = _Answers(model.vocab, streams), Head(model, _Words(), HeadOptions(queue=streams))
        head.attach(ring, plan, _EPOCH)
        try:
            params = SamplingParams(temperature=0.7, seed=1)
            requests = [GenerationRequest(str(i), (0, 0), params, ANSWER, ignore_eos=True) for i in range(streams)]
            for stream in [head.submit(request) for request in requests]:
                stream.last(TIMEOUT_S)
        finally:
            head.close()
        self.turn_s = statistics.median(ring.turns[WARM_FRAMES:])
        self.publish_s = statistics.median(ring.publishing[WARM_FRAMES:])


class _Words:
    """Implements `head.options.Words`: nothing ends an answer."""

    eos_ids: frozenset[int] = frozenset()

    def token_bytes(self, token: int) -> bytes:
        return b" %04x" % (token & 0xFFFF)


class _Answers:
    """Implements `Ring`: every frame is encoded as it leaves, and its answer decoded as it comes, as on real links."""

    def __init__(self, vocab: int, slots: int) -> None:
        self.turns: list[float] = []
        self.publishing: list[float] = []
        self._rows = slots
        self._terms = Terms(_EPOCH, Limits(slots, 128, slots, CONTEXT, vocab, 4), frozenset({Kind.CANDIDATES}))
        self._reader = FrameReader(self._terms)
        self._place = place_afresh(self._terms)
        self._coming: deque[bytes] = deque()
        self._woken = threading.Event()
        self._answer = _candidates(min(CANDIDATES_K, vocab))
        self._arrived_s = self._left_s = 0.0

    def send(self, message: Frame | Copy) -> None:
        """See `Ring`."""
        encode(message)
        left_s = time.perf_counter()
        if isinstance(message, Frame):
            if self._arrived_s and len(message.rows) == self._rows:
                self.turns.append(left_s - self._arrived_s)
            self._coming.append(self._answered(message))
        self._arrived_s, self._left_s = 0.0, time.perf_counter()

    def poll(self, timeout_s: float | None, rehearse: object = None) -> Sequence[Frame]:
        """See `Ring`."""
        if self._left_s:
            self.publishing.append(time.perf_counter() - self._left_s)
            self._left_s = 0.0
        if not self._coming:
            self._woken.wait(timeout_s)
        self._woken.clear()
        self._arrived_s = time.perf_counter()
        frames = []
        while self._coming:
            frames.append(self._received(memoryview(self._coming.popleft())))
        return frames

    def wake(self) -> None:
        """See `Ring`."""
        self._woken.set()

    def close(self) -> None:
        """See `Ring`."""
        self._woken.set()

    def _answered(self, frame: Frame) -> bytes:
        payload = b"".join(self._answer for row in frame.rows if row.want)
        answer = pass_on(frame, Kind.CANDIDATES, (payload,), StageTiming(0, 1, 1, 1, 1, 1))
        return b"".join(map(bytes, encode(answer)))

    def _received(self, data: memoryview) -> Frame:
        while (message := self._reader.next(self._place)) is None:
            room = self._reader.buffer()
            count = min(len(room), len(data))
            room[:count], data = data[:count], data[count:]
            self._reader.received(count)
        assert isinstance(message, Frame)
        return message


def _candidates(count: int) -> bytes:
    """One position's answer that has all of the mass but a millionth, so that every draw is decided by it."""
    logits = np.linspace(8.0, -8.0, count, dtype=np.float32)

    def lse(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
        return math.log(float(np.exp(values.astype(np.float64)).sum()) * (1 + 1e-6))

    return join([[Candidates(range(count), logits.tolist(), lse(logits), lse(logits / np.float32(0.7)), ())]])
