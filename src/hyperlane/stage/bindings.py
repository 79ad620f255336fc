"""What one shape of run reads and writes, bound to the engine's memory once and kept for the next run of that shape.

Knows the names of a graph's inputs and outputs; the session it is given is ONNX Runtime's, which it does not import.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from hyperlane.graph import names
from hyperlane.stage.answers import RunAnswer
from hyperlane.stage.arena import KvArena
from hyperlane.stage.memory import Memory

MAX_KEPT = 128
"""Bindings kept; binding the 60 arrays of a 30-layer stage takes some 0.2 ms."""

ALIGNMENT = 256
"""Of arrays in a block: what devices read fastest."""

SLOTS = -1
"""Stands for a place in the frame's buffers: the tokens lie in the slots' buffers."""

A = TypeVar("A", bound=npt.NDArray[Any])


class IoBinding(Protocol):
    """ONNX Runtime's IOBinding, as far as it is used."""

    def bind_input(  # noqa: PLR0917
        self, name: str, device_type: str, device_id: int, element_type: type, shape: Sequence[int], buffer_ptr: int
    ) -> None: ...

    def bind_output(  # noqa: PLR0917
        self, name: str, device_type: str, device_id: int, element_type: type, shape: Sequence[int], buffer_ptr: int
    ) -> None: ...


class Session(Protocol):
    """ONNX Runtime's InferenceSession, as far as it is used."""

    def io_binding(self) -> IoBinding: ...

    def run_with_iobinding(self, iobinding: IoBinding, run_options: object) -> None: ...


class RunShape(NamedTuple):
    """All that a binding depends on. `slot` and `batch`: the KV entries; `tokens`: of each row.

    `at`: first token of a piece in the frame's buffers, or SLOTS for a batch.
    `wanted`, `top_k` and `extra` are sizes of the answer; `whole`: logits instead of candidates.
    `captured`: the device replays what it did the first time, with other values in the same memory.
    `singly`: the tokens are taken one by one, each at a length of its own.
    `beside`: the slot whose `tokens` come behind the batch's rows, which have one each; -1 for none.
    """

    slot: int
    batch: int
    tokens: int
    at: int
    wanted: int = 0
    top_k: int = 0
    extra: int = 0
    whole: bool = False
    captured: bool = False
    singly: bool = False
    beside: int = -1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and tokens of each, as the graph sees them."""
        return (1, self.batch + self.tokens) if self.beside >= 0 else (self.batch, self.tokens)

    @property
    def lengths(self) -> int:
        """How many lengths of KV entries a run is told."""
        return self.tokens if self.singly else self.batch


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What a run of a last stage is asked; see `graph.names`. `extra`: int64 [wanted, E]."""

    wanted: npt.NDArray[np.int64]
    inverse_temperature: npt.NDArray[np.float32]
    extra: npt.NDArray[np.int64]
    answer: RunAnswer


class Binding:
    """Arrays of one run shape, bound. The small ones are its own, to be written before and read after a run.

    They share one block, what goes in before what comes out, so that each way is one copy to a device. `fused`: what
    goes in lies on the device right before the tokens, so that one copy takes both.
    """

    def __init__(  # noqa: PLR0917
        self,
        session: Session,
        shape: RunShape,
        memory: Memory,
        options: object,
        vocab: int,
        fused: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Bind to `memory`; `session` and `options` are what it is run by.

        `fused`: room for `bytes_in` of the shape, which other shapes may use between runs, and the tokens behind it.
        """
        self.session = session
        self.io = session.io_binding()
        self.shape = shape
        self.options = options
        self._vocab = vocab
        self.question: Question | None = None
        self.tokens_in: npt.NDArray[Any] | None = None
        self.hidden_out: npt.NDArray[Any] | None = None
        self._memory = memory
        self.fused = fused
        self._owned: list[npt.NDArray[Any]] = []
        self._inputs: dict[str, npt.NDArray[Any]] = {}
        self._block = memory.lend(_block_bytes(shape, vocab))
        self._end = self._end_in = 0
        self.lengths: npt.NDArray[np.int32] = self._take(names.LENGTHS, (shape.lengths,), np.int32)
        self.total = self._take_on_host(names.TOTAL, np.zeros((), np.int32))
        self.beside: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]] | None = None
        if shape.beside >= 0:
            self._take_on_host(names.COUNTS, np.array([shape.batch, shape.tokens], np.int64))
            lengths = self._take_on_host(names.BESIDE_LENGTHS, np.zeros(1, np.int32))
            self.beside = lengths, self._take_on_host(names.BESIDE_TOTAL, np.zeros((), np.int32))

    def __del__(self) -> None:
        """Give the block back: only now does nothing refer to it."""
        block = getattr(self, "_block", None)  # there is none where memory had no room for it
        if block is not None:
            self._memory.give_back(block)

    def bind_cache(self, arena: KvArena) -> None:
        """Bind the slots' KV entries, past and present the same memory."""
        for (layer, kv), entries in arena.entries.items():
            shape, place = (self.shape.batch, *entries.shape[1:]), entries.address(self.shape.slot)
            self._bind(self.io.bind_input, names.past(layer, kv), entries.dtype, shape, place, entries.provider)
            passing = [names.passing(layer, kv, token) for token in range(self.shape.lengths - 1)]
            for name in (*(passing if self.shape.singly else ()), names.present(layer, kv)):
                self._bind(self.io.bind_output, name, entries.dtype, shape, place, entries.provider)
            if self.shape.beside >= 0:
                shape, place = (1, *entries.shape[1:]), entries.address(self.shape.beside)
                past, present = names.beside(names.past(layer, kv)), names.beside(names.present(layer, kv))
                self._bind(self.io.bind_input, past, entries.dtype, shape, place, entries.provider)
                self._bind(self.io.bind_output, present, entries.dtype, shape, place, entries.provider)

    def bind_tokens(self, name: str, values: npt.NDArray[Any]) -> None:
        """Bind what goes in: token ids or hidden states, [*grid] or [*grid, hidden]."""
        self.tokens_in = values
        self._bind_array(self.io.bind_input, name, values)

    def bind_hidden(self, values: npt.NDArray[Any]) -> None:
        """Bind what an inner stage passes on, [*grid, hidden]."""
        self.hidden_out = values
        self._bind_array(self.io.bind_output, names.HIDDEN_OUT, values)

    def bind_question(self, parts: int = 1) -> None:
        """Make and bind what a last stage is asked and answers; `parts`: of the vocabulary, see `graph.candidates`."""
        shape, vocab, wanted, extra = self.shape, self._vocab, self.shape.wanted, self.shape.extra
        self._take_on_host(names.TOP_K, np.array([shape.top_k], np.int64))
        if parts > 1:
            self._take_on_host(names.PART_K, np.array([min(shape.top_k, vocab // parts)], np.int64))
        self.question = Question(
            wanted=self._take(names.WANTED, (wanted,), np.int64),
            inverse_temperature=self._take(names.INVERSE_TEMPERATURE, (wanted, 1), np.float32),
            extra=self._take(names.EXTRA, (wanted * extra,), np.int64).reshape(wanted, extra),
            answer=RunAnswer(
                logits=self._give(names.TOP_LOGITS, (wanted, shape.top_k), np.float32),
                ids=self._give(names.TOP_IDS, (wanted, shape.top_k), np.int32),
                lse=self._give(names.LSE, (wanted, 1), np.float32),
                lse_t=self._give(names.LSE_T, (wanted, 1), np.float32),
                extra=self._give(names.EXTRA_LOGITS, (wanted * extra,), np.float32).reshape(wanted, extra),
                whole=self._give(names.LOGITS, (wanted, vocab), np.float32) if shape.whole else None,
            ),
        )
        self.question.inverse_temperature[:] = 1
        self.question.wanted[:] = np.arange(wanted)

    def push(self) -> None:
        """Let the run see what goes in."""
        if self.fused is not None:
            self.fused[: self._end_in] = self._block[: self._end_in]
            self._memory.push(self.fused)
            return
        if self.tokens_in is not None:
            self._memory.push(self.tokens_in)
        self._memory.push(self._block[: self._end_in])
        for name, array in self._inputs.items():
            self.io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def pull(self) -> None:
        """Bring what the run wrote; it is there after the memory's `wait`."""
        if self.hidden_out is not None:
            self._memory.pull(self.hidden_out)
        self._memory.pull(self._block[self._end_in : self._end])

    def _take(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        begin = self._end
        array = self._place(shape, np.dtype(dtype))
        self._end_in = self._end
        where = None if self.fused is None else self.fused[begin : begin + array.nbytes]
        self._bind_array(self.io.bind_input, name, array, where)
        return array

    def _give(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        array = self._place(shape, np.dtype(dtype))
        self._bind_array(self.io.bind_output, name, array)
        return array

    def _place(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """An array in the block, behind the one before."""
        nbytes = math.prod(shape) * dtype.itemsize
        array = self._block[self._end : self._end + nbytes].view(dtype).reshape(shape)
        self._end += _aligned(nbytes)
        return array

    def _take_on_host(self, name: str, array: A) -> A:
        """Bind what kernels are launched by, which every device reads from the host."""
        self._owned.append(array)  # ONNX Runtime keeps the pointer, not the array
        self.io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        if self._memory.takes_when_bound:
            self._inputs[name] = array
        return array

    def _bind_array(
        self, bind: Callable[..., None], name: str, array: npt.NDArray[Any], where: npt.NDArray[Any] | None = None
    ) -> None:
        """`where`: what the run sees in its place."""
        assert array.flags.c_contiguous
        self._owned.append(array)
        place = self._memory.address(array if where is None else where)
        self._bind(bind, name, array.dtype, array.shape, place, self._memory.provider)
        if self._memory.takes_when_bound and bind == self.io.bind_input:
            self._inputs[name] = array

    def _bind(  # noqa: PLR0917
        self,
        bind: Callable[..., None],
        name: str,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        place: int,
        provider: str,
    ) -> None:
        bind(name, provider, self._memory.index, dtype.type, shape, place)


def bytes_in(shape: RunShape) -> int:
    """What the small arrays that go in take, one behind the other."""
    of_wanted = (8, 4, 8 * shape.extra)
    return _aligned(4 * shape.lengths) + sum(_aligned(shape.wanted * nbytes) for nbytes in of_wanted)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _block_bytes(shape: RunShape, vocab: int) -> int:
    """What the arrays of a shape take, the small ones counted as 8 bytes each."""
    of_each = (1, 1, shape.extra, shape.top_k, shape.top_k, 1, 1, shape.extra)
    whole = 4 * vocab if shape.whole else 0
    return sum(_aligned(nbytes) for nbytes in (4 * shape.lengths, *(8 * shape.wanted * n for n in of_each))) + _aligned(
        shape.wanted * whole
    )


class BindingCache:
    """The last `MAX_KEPT` bindings by shape, and all captured ones: a device goes on holding what it captured."""

    def __init__(self, make: Callable[[RunShape], Binding]) -> None:
        self._make = make
        self._kept: OrderedDict[RunShape, Binding] = OrderedDict()
        self._captured: dict[RunShape, Binding] = {}

    def get(self, shape: RunShape) -> Binding:
        """The binding of this shape, made now if it is not there."""
        if shape.captured:
            if shape not in self._captured:
                self._captured[shape] = self._make(shape)
            return self._captured[shape]
        found = self._kept.get(shape)
        if found is None:
            found = self._kept[shape] = self._make(shape)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(shape)
        return found

    def clear(self) -> None:
        """Forget all of them."""
        self._kept.clear()
        self._captured.clear()
