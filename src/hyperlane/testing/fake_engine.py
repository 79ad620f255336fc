"""`FakeEngine`: an `Engine` of a toy model whose answer depends on every token, slot and position. No weights.

A layer's KV entry is a 64-bit state made of the entry before it and of what the layer below says: a token in the
wrong slot, at the wrong position or in the wrong order changes all that follows. Cutting the layers differently
changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hyperlane.core import ElementType, ModelFacts, Precision, Row, StageSpec
from hyperlane.errors import EngineFault, ProtocolError
from hyperlane.stage.orders import LoadOrder
from hyperlane.wire.candidates import Candidates, candidates_bytes, join
from hyperlane.wire.packing import NOT_FINITE, token_bytes

Floats = npt.NDArray[np.float32]

STATE_VALUES = 4
"""Values of a hidden state that carry the toy model's 64 bits, 16 in each."""

_MASK = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15
_FIRST = 0x243F6A8885A308D3


class FrameCost(Protocol):
    """What a frame takes."""

    def of(self, rows: Sequence[Row]) -> float:
        """Seconds of one frame."""
        ...


@dataclass(frozen=True, slots=True)
class FakeCost:
    """What a step takes, in seconds: for itself, for each of its rows and for each of its tokens."""

    step_s: float = 0.0
    row_s: float = 0.0
    token_s: float = 0.0

    def of(self, rows: Sequence[Row]) -> float:
        """Seconds of one frame."""
        return self.step_s + self.row_s * len(rows) + self.token_s * sum(row.count for row in rows)


@dataclass(frozen=True, slots=True)
class FakeFaults:
    """At which call of `step`, counted from 0, something goes wrong: it raises, or a value is not a number."""

    raises_at: int | None = None
    nan_at: int | None = None


class FakeEngine:
    """The toy model's layers of one stage. `wait` spends a step's programmed cost (seconds)."""

    def __init__(
        self,
        spec: StageSpec,
        *,
        cost: FrameCost = FakeCost(),
        faults: FakeFaults = FakeFaults(),
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._spec = spec
        self._cost = cost
        self._faults = faults
        self._wait = wait
        self._steps = 0
        self._inputs: dict[int | None, bytearray] = {}
        self._arena = {
            layer: [[0] * (spec.context + 1) for _ in range(spec.slots)]
            for layer in range(spec.layers.first, spec.layers.last)
        }

    @property
    def element(self) -> ElementType:
        return ElementType.F32

    @property
    def private_bytes(self) -> int:
        return 8 * len(self._arena) * self._spec.slots * (self._spec.context + 1)

    def input_buffer(self, rows: Sequence[Row], bank: int | None = None) -> memoryview:
        self._check(rows)
        tokens = sum(row.count for row in rows)
        size = tokens * (4 if self._spec.is_first else self._token_bytes(self._spec.precision_in))
        self._inputs[bank] = bytearray(size)
        return memoryview(self._inputs[bank])

    def step(self, rows: Sequence[Row], bank: int | None = None) -> Sequence[memoryview]:
        given = self._inputs[bank]
        step, self._steps = self._steps, self._steps + 1
        if seconds := self._cost.of(rows):
            self._wait(seconds)
        if step == self._faults.raises_at:
            raise EngineFault(f"a programmed fault in step {step}")
        states = self._layers(rows, self._states(rows, given))
        if not self._spec.is_last:
            return [_bytes_of(self._hidden(states, broken=step == self._faults.nan_at))]
        payload = self._answers(rows, states, broken=step == self._faults.nan_at)
        if len(payload) != candidates_bytes(rows, self._spec.model.vocab):
            raise AssertionError("the answer has another length than its rows make")
        return [memoryview(payload)] if payload else []

    def copy(self, source: int, destination: int, count: int) -> None:
        for slots in self._arena.values():
            slots[destination][:count] = slots[source][:count]

    def close(self) -> None:
        self._arena.clear()

    def _check(self, rows: Sequence[Row]) -> None:
        spec = self._spec
        if sum(row.count for row in rows) > spec.max_step_tokens:
            raise ProtocolError(f"a frame of more than {spec.max_step_tokens} tokens")
        for row in rows:
            if row.slot >= spec.slots or row.start + row.count > spec.context:
                raise ProtocolError(f"{row} exceeds {spec.slots} slots of {spec.context} tokens")

    def _states(self, rows: Sequence[Row], given: bytearray) -> list[int]:
        """What the stage before this one says of each token, or the tokens' embeddings."""
        if self._spec.is_first:
            tokens = np.frombuffer(given, "<i4").tolist()
            positions = [row.start + offset for row in rows for offset in range(row.count)]
            return [embedding(token, position) for token, position in zip(tokens, positions, strict=True)]
        if self._spec.precision_in is not Precision.RAW:
            return self._unpacked(given)
        hidden = np.frombuffer(given, "<f4").reshape(-1, self._spec.model.hidden)[:, :STATE_VALUES]
        if not np.isfinite(hidden).all():
            raise EngineFault("a hidden state that is not finite came in")
        return [int(state) for state in np.ascontiguousarray(hidden.astype("<u2")).view("<u8").ravel()]

    def _unpacked(self, given: bytearray) -> list[int]:
        """A packed token's first octet is a scale's code; here the state's octets are behind it."""
        tokens = np.frombuffer(given, np.uint8).reshape(-1, self._token_bytes(self._spec.precision_in))
        if (tokens[:, 0] == NOT_FINITE).any():
            raise EngineFault("a hidden state that is not finite came in")
        return [int(state) for state in np.ascontiguousarray(tokens[:, 1:9]).view("<u8").ravel()]

    def _token_bytes(self, precision: Precision) -> int:
        return token_bytes(self._spec.model.hidden, precision, self.element)

    def _layers(self, rows: Sequence[Row], states: list[int]) -> list[int]:
        for layer, slots in self._arena.items():
            at = 0
            for row in rows:
                kept = slots[row.slot]
                before = kept[row.start - 1] if row.start else _FIRST
                for position in range(row.start, row.start + row.count):
                    before = kept[position] = states[at] = mix(before, states[at], layer)
                    at += 1
        return states

    def _hidden(self, states: Sequence[int], *, broken: bool) -> npt.NDArray[Any]:
        precision = self._spec.precision_out
        if precision is not Precision.RAW:
            packed = np.zeros((len(states), self._token_bytes(precision)), np.uint8)
            packed[:, 1:9] = np.array(states, "<u8").view(np.uint8).reshape(-1, 8)
            packed[-1, 0] = NOT_FINITE if broken else 0
            return packed
        out = np.zeros((len(states), self._spec.model.hidden), "<f4")
        out[:, :STATE_VALUES] = np.array(states, "<u8").view("<u2").reshape(-1, STATE_VALUES)
        if broken:
            out[-1, 0] = np.nan
        return out

    def _answers(self, rows: Sequence[Row], states: Sequence[int], *, broken: bool) -> bytes:
        answers: list[list[Candidates | Floats]] = []
        at = 0
        for row in rows:
            logits = [toy_logits(states[at + offset], self._spec.model.vocab) for offset in row.want]
            if broken:
                for one in logits:
                    one[:] = np.nan
            answers.append([one if row.whole_logits else candidates_of(one, row) for one in logits])
            at += row.count
        return join(answers)


def toy_engine(order: LoadOrder, _progress: object) -> FakeEngine:
    """What a `StageHost` loads for an order: the toy, without weights."""
    return FakeEngine(order.spec)


def mix(before: int, below: int, layer: int) -> int:
    """A layer's state at a position from the state before it and the one below it."""
    state = ((before ^ below) * _ODD + layer) & _MASK
    return state ^ (state >> 29)


def embedding(token: int, position: int) -> int:
    """What the first layer sees of a token."""
    return ((token + 1) * _ODD ^ (position << 40)) & _MASK


def toy_logits(state: int, vocab: int) -> Floats:
    """float32[vocab] from the last layer's state: lower-case letters are likeliest, all else is possible."""
    with np.errstate(over="ignore"):
        ids = np.arange(1, vocab + 1, dtype=np.uint64) * np.uint64(_ODD) ^ np.uint64(state)
        ids *= np.uint64(0xD6E8FEB86659FD93)
        ids ^= ids >> np.uint64(32)
        ids *= np.uint64(0xD6E8FEB86659FD93)
    logits = (ids >> np.uint64(40)).astype(np.float32) * np.float32(6.0 * 2.0**-24)
    logits[97:123] += np.float32(4.0)
    return logits


def candidates_of(logits: Floats, row: Row) -> Candidates:
    """What a last stage answers for one wanted position of a row, in float32. `logits`: float32[V]."""
    order = np.argsort(-logits, kind="stable")[: row.top_k]
    extra = logits[np.array(row.extra_ids, np.int64)]
    return Candidates(
        order.tolist(), logits[order].tolist(), _lse(logits), _lse(logits / row.temperature), extra.tolist()
    )


class ToySequence:
    """The toy model in one piece, one sequence: what every pipeline of `FakeEngine`s must equal."""

    def __init__(self, facts: ModelFacts) -> None:
        self._facts = facts
        self._states = [_FIRST] * facts.layers
        self._position = 0

    def feed(self, token: int) -> Floats:
        """Logits float32[V] after a token."""
        state = embedding(token, self._position)
        self._position += 1
        for layer in range(self._facts.layers):
            state = self._states[layer] = mix(self._states[layer], state, layer)
        return toy_logits(state, self._facts.vocab)


def fake_generate(
    prompt: Sequence[int],
    count: int,
    facts: ModelFacts,
    pick: Callable[[Floats, Sequence[int]], int] = lambda logits, _: int(np.argmax(logits)),
) -> list[int]:
    """The first `count` tokens of the answer. `pick` chooses from whole logits and all tokens; else greedy."""
    sequence, tokens = ToySequence(facts), list(prompt)
    for token in prompt[:-1]:
        sequence.feed(token)
    for _ in range(count):
        tokens.append(pick(sequence.feed(tokens[-1]), tokens))
    return tokens[len(prompt) :]


def _lse(logits: Floats) -> float:
    top = logits.max()
    return float(np.float32(top + np.log(np.exp(logits - top).sum(dtype=np.float32))))


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.data.cast("B")
