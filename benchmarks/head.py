"""What the head takes of its own for each token, against stages that cost nothing.

    python benchmarks/head.py [--tokens 20000]

Every frame is encoded and decoded as on a link; the answers are canned candidates of a vocabulary of 49,152. `head`
is the processor time of the head's thread, the stage's share taken off: schedule, frames, codec, sampler, text,
streams. `all` is elapsed time, with readers of all streams in one event loop on the same interpreter, as the API has.
`% whole`: tokens that took the whole logits.
Not in it: sockets (`benchmarks/hop.py`) and SSE.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import threading
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from hyperlane.core import CANDIDATES_K, Failed, GenerationRequest, Row, SamplingParams, StageTiming, TextDelta
from hyperlane.head.head import Head
from hyperlane.head.options import HeadOptions
from hyperlane.head.streams import Stream
from hyperlane.testing.toy import toy_facts, toy_plan
from hyperlane.wire.candidates import Candidates, join
from hyperlane.wire.codec import encode
from hyperlane.wire.frame import Copy, Frame, Kind, Message, pass_on
from hyperlane.wire.limits import Limits, Terms
from hyperlane.wire.link import PlacePayload
from hyperlane.wire.reader import FrameReader, place_afresh

VOCAB = 49_152
COMMON = 300
"""An answer has so many different words: what penalties look at."""

ANSWER = 500
"""Tokens of each answer."""

SLOTS = 64
CONTEXT = 1024
STAGES = 2
EPOCH = 1

KINDS = {
    "greedy": SamplingParams(temperature=0.0),
    "sampled": SamplingParams(temperature=0.7, top_p=0.95, seed=1),
    "penalised": SamplingParams(temperature=0.7, frequency_penalty=0.2, seed=1),
}


class Words:
    """A tokenizer without end tokens whose every word is five bytes."""

    eos_ids: frozenset[int] = frozenset()

    def token_bytes(self, token: int) -> bytes:
        return b" %04x" % (token & 0xFFFF)


class CannedRing:
    """A `Ring` whose stages answer at once. `spent_s`: processor time of the head's thread that was theirs."""

    def __init__(self) -> None:
        limits = Limits(SLOTS, 128, SLOTS, CONTEXT, VOCAB, token_bytes=4096)
        self.spent_s = 0.0
        self.thread_s = 0.0
        self._terms = Terms(EPOCH, limits, frozenset({Kind.CANDIDATES, Kind.LOGITS}))
        self._upstream = FrameReader(Terms(EPOCH, limits, frozenset({Kind.TOKENS})), 1 << 16)
        self._reader = FrameReader(self._terms, 1 << 15)
        self._place_tokens = place_afresh(Terms(EPOCH, limits, frozenset({Kind.TOKENS})))
        self._place = place_afresh(self._terms)
        self._coming: deque[bytes] = deque()
        self._woken = threading.Event()
        rng = np.random.default_rng(0)
        self._answers = [_canned(rng) for _ in range(97)]
        self._logits = rng.normal(0.0, 3.0, VOCAB).astype("<f4").tobytes()

    def send(self, message: Frame | Copy) -> None:
        data = b"".join(encode(message))
        began = time.thread_time()
        received = _received(self._upstream, self._place_tokens, data)
        if isinstance(received, Frame):
            self._coming.append(b"".join(encode(self._answer(received))))
        self.spent_s += time.thread_time() - began

    def poll(self, timeout_s: float | None, rehearse: object = None) -> Sequence[Frame]:
        self.thread_s = time.thread_time()
        if not self._coming:
            self._woken.wait(timeout_s)
        self._woken.clear()
        frames = []
        while self._coming:
            frame = _received(self._reader, self._place, self._coming.popleft())
            assert isinstance(frame, Frame)
            frames.append(frame)
        return frames

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        self.wake()

    def _answer(self, frame: Frame) -> Frame:
        whole = frame.rows[0].whole_logits
        payload = b"".join(self._logits if whole else self._candidates(row) for row in frame.rows if row.want)
        kind = Kind.LOGITS if whole else Kind.CANDIDATES
        for stage in range(STAGES):
            frame = pass_on(frame, kind, (payload,), StageTiming(stage, 1, 1, 1, 1, 1))
        return frame

    def _candidates(self, row: Row) -> bytes:
        words = 2 + 2 * row.top_k + len(row.extra_ids)
        return self._answers[(row.start * 31 + row.slot) % len(self._answers)][: 4 * words]


def _received(reader: FrameReader, place: PlacePayload, data: bytes) -> Message:
    """The message of these bytes, as if they came from a socket."""
    left = memoryview(data)
    while (message := reader.next(place)) is None:
        room = reader.buffer()
        count = min(len(room), len(left))
        room[:count], left = left[:count], left[count:]
        reader.received(count)
    return message


def _canned(rng: np.random.Generator) -> bytes:
    """One position's answer, with more extra logits than any row asks for."""
    logits = np.sort(rng.normal(0.0, 3.0, VOCAB).astype(np.float32))[::-1]
    logits[0] += 4.0
    ids = rng.permutation(COMMON)[:CANDIDATES_K].tolist()

    def lse(values: np.ndarray) -> float:
        return float(values.max() + np.log(np.exp(values - values.max()).sum()))

    extra = [float(logits[CANDIDATES_K])] * 1024
    return join([[Candidates(ids, logits[:CANDIDATES_K].tolist(), lse(logits), lse(logits / np.float32(0.7)), extra)]])


async def _read(stream: Stream) -> int:
    count = 0
    async for event in stream:
        assert not isinstance(event, Failed), event
        count += len(event.tokens) if isinstance(event, TextDelta) else 0
    return count


async def _serve(head: Head, sampling: SamplingParams, sequences: int, each: int) -> int:
    streams = [
        head.submit(GenerationRequest(f"bench-{i}", (1, 2, 3, i + 4), sampling, each, ("never\n\n",), ignore_eos=True))
        for i in range(sequences)
    ]
    return sum(await asyncio.gather(*map(_read, streams)))


def measure(kind: str, sequences: int, tokens: int) -> None:
    """Print one line."""
    facts = toy_facts(vocab=VOCAB, context=CONTEXT)
    ring, head = CannedRing(), Head(facts, Words(), HeadOptions(queue=SLOTS))
    head.attach(ring, toy_plan(facts, STAGES, SLOTS), EPOCH)
    asyncio.run(_serve(head, KINDS[kind], sequences, 20))
    gc.collect()
    began_s, thread_s, spent_s = time.perf_counter(), ring.thread_s, ring.spent_s
    count = 0
    while count < tokens:
        count += asyncio.run(_serve(head, KINDS[kind], sequences, ANSWER))
    took_s = time.perf_counter() - began_s
    again = head.status().logits_refetched
    stages_s = ring.spent_s - spent_s
    head_s = ring.thread_s - thread_s - stages_s
    head.close()
    print(
        f"{kind:10} {sequences:9} {count:8} {1e6 * head_s / count:10.1f} {1e6 * (took_s - stages_s) / count:10.1f} "
        f"{count / (took_s - stages_s):10.0f} {100 * again / count:9.2f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="the head alone, against stages that cost nothing")
    parser.add_argument("--tokens", type=int, default=20_000, help="tokens for each line, over all its sequences")
    tokens = parser.parse_args().tokens
    print(f"{platform.machine()}, Python {platform.python_version()}, {STAGES} stages")
    print(f"{'':10} {'sequences':>9} {'tokens':>8} {'head us':>10} {'all us':>10} {'tokens/s':>10} {'% whole':>9}")
    for kind in KINDS:
        for sequences in (1, 8, 64):
            measure(kind, sequences, tokens)


if __name__ == "__main__":
    main()
