"""What one shape of run reads and writes, bound to the engine's memory once and kept for the next run of that shape.

Knows the names of a graph's inputs and outputs; the session it is given is ONNX Runtime's, which it does not import.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from hyperlane.graph import names
from hyperlane.stage.answers import RunAnswer
from hyperlane.stage.arena import KvArena

MAX_KEPT = 128
"""Bindings kept; binding the 60 arrays of a 30-layer stage takes some 0.2 ms."""

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


class RunShape(NamedTuple):
    """All that a binding depends on. `slot` and `batch`: the KV entries; `tokens`: of each row.

    `at`: first token of a piece in the frame's buffers, or SLOTS for a batch.
    `wanted`, `top_k` and `extra` are sizes of the answer; `whole`: logits instead of candidates.
    """

    slot: int
    batch: int
    tokens: int
    at: int
    wanted: int = 0
    top_k: int = 0
    extra: int = 0
    whole: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What a run of a last stage is asked; see `graph.names`. `extra`: int64 [wanted, E]."""

    wanted: npt.NDArray[np.int64]
    inverse_temperature: npt.NDArray[np.float32]
    extra: npt.NDArray[np.int64]
    answer: RunAnswer


class Binding:
    """Arrays of one run shape, bound. The small ones are its own, to be written before and read after a run."""

    def __init__(self, io: IoBinding, shape: RunShape) -> None:
        self.io = io
        self.shape = shape
        self.question: Question | None = None
        self.hidden_out: npt.NDArray[np.float32] | None = None
        self._owned: list[npt.NDArray[Any]] = []
        self.lengths = self._take(names.LENGTHS, np.zeros(shape.batch, np.int32))
        self.total = self._take(names.TOTAL, np.zeros((), np.int32))

    def bind_cache(self, arena: KvArena) -> None:
        """Bind the slots' KV entries, past and present the same memory."""
        for layer, kv, entries in arena.views(self.shape.slot, self.shape.batch):
            self._bind(self.io.bind_input, names.past(layer, kv), entries)
            self._bind(self.io.bind_output, names.present(layer, kv), entries)

    def bind_tokens(self, name: str, values: npt.NDArray[Any]) -> None:
        """Bind what goes in: token ids [batch, tokens] or hidden states [batch, tokens, hidden]."""
        self._bind(self.io.bind_input, name, values)

    def bind_hidden(self, values: npt.NDArray[np.float32]) -> None:
        """Bind what an inner stage passes on, [batch, tokens, hidden]."""
        self.hidden_out = values
        self._bind(self.io.bind_output, names.HIDDEN_OUT, values)

    def bind_question(self, vocab: int) -> None:
        """Make and bind what a last stage is asked and answers."""
        shape, wanted = self.shape, self.shape.wanted
        self._take(names.TOP_K, np.array([shape.top_k], np.int64))
        self.question = Question(
            wanted=self._take(names.WANTED, np.zeros(wanted, np.int64)),
            inverse_temperature=self._take(names.INVERSE_TEMPERATURE, np.ones((wanted, 1), np.float32)),
            extra=self._take(names.EXTRA, np.zeros(wanted * shape.extra, np.int64)).reshape(wanted, shape.extra),
            answer=RunAnswer(
                logits=self._give(names.TOP_LOGITS, np.empty((wanted, shape.top_k), np.float32)),
                ids=self._give(names.TOP_IDS, np.empty((wanted, shape.top_k), np.int32)),
                lse=self._give(names.LSE, np.empty((wanted, 1), np.float32)),
                lse_t=self._give(names.LSE_T, np.empty((wanted, 1), np.float32)),
                extra=self._extra_answer(),
                whole=self._give(names.LOGITS, np.empty((wanted, vocab), np.float32)) if shape.whole else None,
            ),
        )

    def _extra_answer(self) -> npt.NDArray[np.float32]:
        wanted, extra = self.shape.wanted, self.shape.extra
        return self._give(names.EXTRA_LOGITS, np.empty(wanted * extra, np.float32)).reshape(wanted, extra)

    def _take(self, name: str, array: A) -> A:
        self._bind(self.io.bind_input, name, array)
        return array

    def _give(self, name: str, array: A) -> A:
        self._bind(self.io.bind_output, name, array)
        return array

    def _bind(self, bind: Callable[..., None], name: str, array: npt.NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        self._owned.append(array)  # ONNX Runtime keeps the pointer, not the array
        bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


class BindingCache:
    """The last `MAX_KEPT` bindings by shape."""

    def __init__(self, make: Callable[[RunShape], Binding]) -> None:
        self._make = make
        self._kept: OrderedDict[RunShape, Binding] = OrderedDict()

    def get(self, shape: RunShape) -> Binding:
        """The binding of this shape, made now if it is not there."""
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
