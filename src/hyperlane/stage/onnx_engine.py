"""The engine on ONNX Runtime: one session, one KV arena, frames in and out of bound memory. Knows no device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import onnxruntime as ort

from hyperlane.core import CANDIDATES_K, ElementType, Row, StageSpec
from hyperlane.errors import EngineFault, ProtocolError
from hyperlane.graph import names
from hyperlane.graph.candidates import parts_of
from hyperlane.stage.answers import Answers, Place, RunAnswer
from hyperlane.stage.arena import KvArena, positions
from hyperlane.stage.bindings import SLOTS, Binding, BindingCache, RunShape
from hyperlane.stage.buffers import Buffers, all_finite, as_bytes
from hyperlane.stage.later import Later
from hyperlane.stage.memory import Memory
from hyperlane.stage.numbers import element_of, numbers_of
from hyperlane.stage.onnx_errors import ORT_ERRORS
from hyperlane.stage.options import EngineOptions
from hyperlane.stage.providers import provider_of
from hyperlane.stage.rows import SlotLengths, check_rows
from hyperlane.stage.runs import Batch, Piece, batches, bucket, pieces, run_tokens

NOT_CAPTURED = "-1"
"""ONNX Runtime's graph id for a run that is to be neither captured nor replayed."""


@dataclass(frozen=True, slots=True)
class Sessions:
    """What computes a stage's graph. `many`: other kernels over the same entries, for batches of `many_from` and more.

    `least`: smaller captured batches are padded to so many rows. `singles`: for rows that are taken one by one.
    """

    usual: ort.InferenceSession
    many: ort.InferenceSession | None = None
    many_from: int = 0
    least: int = 1
    singles: Later[ort.InferenceSession] | None = None

    def has_singles(self) -> bool:
        """Whether rows that are taken one by one can share runs; may take the time that making a session takes."""
        return self.singles is not None and self.singles.get() is not None

    def of(self, shape: RunShape) -> ort.InferenceSession:
        """Which of them runs a shape."""
        if shape.singly and shape.tokens > 1:
            assert self.singles is not None
            session = self.singles.get()
            assert session is not None
            return session
        if self.many is not None and shape.captured and shape.batch >= self.many_from:
            return self.many
        return self.usual


@dataclass(frozen=True, slots=True)
class Asked:
    """A wanted position of a run: the `number`-th of row `index` of the frame, token `token` of the run.

    `line`: which of the run's answers is its.
    """

    row: Row
    index: int
    number: int
    token: int
    line: int


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run that was begun: what to look at when it is done. `moves`: from slot to token of the frame."""

    binding: Binding
    asked: Sequence[Asked]
    moves: Sequence[tuple[int, int]] = ()


class OnnxEngine:
    """Implements `Engine` over a session of a stage's graph.

    A step begins all its runs, in order, waits once, and then looks at what they wrote.
    """

    def __init__(
        self,
        spec: StageSpec,
        sessions: Sessions,
        options: EngineOptions,
        memory: Memory,
        keep: object = None,
    ) -> None:
        """Take over sessions that compute in `memory`; `keep` is what must live as long as they."""
        self._spec = spec
        self._keep = keep
        self._sessions: Sessions | None = sessions
        row, numbers = provider_of(options.device), numbers_of(options, spec.model.family)
        self._memory = memory
        self._captures = options.capture and memory.captures
        self._graphs = itertools.count()
        self._parts = parts_of(spec.model.vocab) if row.searches_parts else 1
        self._least_wanted = 0 if row.packs else 1  # devices have no kernels for nothing
        self._least_rows = sessions.least
        self._least_batch = sessions.least if sessions.many is None else row.least_rows
        self._alone = row.alone
        self._singles = row.singles
        self._run_tokens = memory.most_tokens(spec.model.window) or row.run_tokens or run_tokens(spec.model)
        self._element = element_of(numbers)
        self._arena = KvArena.make(spec, memory, half=numbers.cache_dtype == np.float16)
        self._buffers = Buffers.make(spec, memory, self._element)
        self._lengths = SlotLengths(spec.slots)
        self._answers = Answers(spec.model.vocab)
        self._bindings = BindingCache(self._bind)
        self._begun: list[Run] = []

    @property
    def element(self) -> ElementType:
        """Float32 on CPU; on a GPU float16, where the family's residual stream fits it."""
        return self._element

    @property
    def private_bytes(self) -> int:
        """Bytes of the KV arena and the buffers; those of the arena are taken from the system as they are used."""
        return self._arena.nbytes + self._buffers.nbytes

    def input_buffer(self, rows: Sequence[Row]) -> memoryview:
        """See `Engine`; a frame whose rows are one token of neighbouring slots lands where it is computed."""
        check_rows(rows, self._spec, self._lengths)
        tokens = _tokens(rows)
        if _is_slot_range(rows):
            return as_bytes(self._buffers.slots_in[rows[0].slot : rows[0].slot + tokens])
        return as_bytes(self._buffers.frame_in[:tokens])

    def step(self, rows: Sequence[Row]) -> Sequence[memoryview]:
        """See `Engine`."""
        self._begun.clear()
        direct = _is_slot_range(rows)
        if self._spec.is_first:
            self._check_tokens(rows, direct)
        try:
            for piece in pieces(rows, self._run_tokens, self._singles_of(rows)):
                self._run_piece(rows, piece)
            for batch in batches(rows, alone=self._alone):
                self._run_batch(rows, batch, direct)
            self._answers.begin(rows)
            self._memory.wait()
        except ORT_ERRORS as error:
            raise EngineFault(f"the engine failed on layers {self._spec.layers}: {error}") from error
        for run in self._begun:
            self._finish(run)
        if self._spec.is_last:
            return (self._answers.payload(),)
        return (self._hidden_out(rows, direct),)

    def warm_up(self) -> None:
        """Run what a device prepares at the first time: steps of the usual batches, prompts; nothing of it stays.

        Raises:
            EngineFault: the device failed.

        """
        spec = self._spec
        batches = takewhile(lambda count: count <= spec.slots, (1 << bit for bit in range(16)))
        for rows in (*([Row(slot, 0, 1, (0,)) for slot in range(count)] for count in (*batches, spec.slots)),):
            self._try(rows)
        longest = min(spec.context, spec.max_step_tokens, self._run_tokens)
        for count in {2, longest}:
            self._try([Row(0, 0, count, (count - 1,))] if count > 1 else [Row(0, 0, 1, (0,))])
        self._lengths = SlotLengths(spec.slots)

    def _try(self, rows: Sequence[Row]) -> None:
        if _tokens(rows) <= min(self._spec.max_step_tokens, self._spec.context * len(rows)):
            self.input_buffer(rows)[:] = bytes(len(self.input_buffer(rows)))
            self.step(rows)

    def copy(self, source: int, destination: int, count: int) -> None:
        """See `Engine`."""
        self._lengths.copied(source, destination, count)
        self._arena.copy(source, destination, count)

    def close(self) -> None:
        """See `Engine`."""
        self._begun.clear()
        self._bindings.clear()
        if self._sessions is not None and self._sessions.singles is not None:
            self._sessions.singles.close()
        self._sessions = None
        self._keep = None
        self._memory.close()

    # --- runs --------------------------------------------------------------------------------------------

    def _run_piece(self, rows: Sequence[Row], piece: Piece) -> None:
        """Some tokens of one row."""
        row = rows[piece.row]
        end = piece.offset + piece.count
        wanted = [(number, offset) for number, offset in enumerate(row.want) if piece.offset <= offset < end]
        asked = [
            Asked(row, piece.row, number, offset - piece.offset, line) for line, (number, offset) in enumerate(wanted)
        ]
        run = RunShape(row.slot, 1, piece.run, piece.base + piece.offset, singly=piece.singly and piece.run > 1)
        binding = self._bindings.get(self._shape(run, asked))
        if run.singly:
            self._tell_positions(binding, row, piece)
            self._buffers.frame_in[_tokens(rows) : piece.base + piece.offset + piece.run] = 0
        else:
            binding.lengths[0] = row.start + piece.offset + piece.run - 1
        binding.total[()] = int(binding.lengths.max()) + 1
        self._begin(Run(binding, asked))
        self._lengths.written(row.slot, row.start, row.start + end)

    def _tell_positions(self, binding: Binding, row: Row, piece: Piece) -> None:
        """Of each token of a piece; stand-ins write behind all that the slot holds."""
        start = row.start + piece.offset
        binding.lengths[: piece.count] = range(start, start + piece.count)
        binding.lengths[piece.count :] = max(start + piece.count, self._lengths[row.slot])

    def _singles_of(self, rows: Sequence[Row]) -> int:
        """How many tokens of a row that is taken one by one share a run, if there is such a row."""
        assert self._sessions is not None
        return self._singles if any(row.one_by_one for row in rows) and self._sessions.has_singles() else 1

    def _run_batch(self, rows: Sequence[Row], batch: Batch, direct: bool) -> None:
        """One token of each of several rows; slots without a row write to their first unused entry."""
        bases = _bases(rows)
        if not direct:
            for index in batch.rows:
                self._buffers.slots_in[rows[index].slot] = self._buffers.frame_in[bases[index]]
        wanting = [index for index in batch.rows if rows[index].want]
        binding = self._batch_binding(rows, batch, wanting)
        first, captured = binding.shape.slot, binding.shape.captured
        asked = [
            Asked(rows[i], i, 0, rows[i].slot - first, rows[i].slot - first if captured else line)
            for line, i in enumerate(wanting)
        ]
        binding.lengths[:] = self._lengths.of(first, binding.shape.batch)
        for index in batch.rows:
            binding.lengths[rows[index].slot - first] = rows[index].start
        if not captured:
            binding.total[()] = int(binding.lengths.max()) + 1
        moves = [] if direct else [(rows[index].slot, bases[index]) for index in batch.rows]
        self._begin(Run(binding, asked, moves))
        for index in batch.rows:
            self._lengths.written(rows[index].slot, rows[index].start, rows[index].start + 1)

    def _batch_binding(self, rows: Sequence[Row], batch: Batch, wanting: Sequence[int]) -> Binding:
        """Captured where its shape is one of the few that are kept: all answers, of a size that is always the same."""
        asked = [rows[index] for index in wanting]
        usual = not any(row.whole_logits or row.extra_ids or row.top_k > CANDIDATES_K for row in asked)
        if not (self._captures and usual):
            lines = [Asked(row, 0, 0, 0, line) for line, row in enumerate(asked)]
            return self._bindings.get(self._shape(RunShape(batch.first, batch.size, 1, SLOTS), lines))
        least = self._least_rows if batch.size == 1 else self._least_batch
        first, size = bucket(batch.first, batch.size, self._spec.slots, least)
        shape = RunShape(first, size, 1, SLOTS, captured=True)
        if self._spec.is_last:
            shape = shape._replace(wanted=size, top_k=min(CANDIDATES_K, self._spec.model.vocab))
        return self._bindings.get(shape)

    def _begin(self, run: Run) -> None:
        binding, question = run.binding, run.binding.question
        if question is not None and run.asked:
            vocab = self._spec.model.vocab
            for one in run.asked:
                question.wanted[one.line] = one.token
                question.inverse_temperature[one.line, 0] = 1.0 / one.row.temperature
                extra = one.row.extra_ids
                question.extra[one.line, : len(extra)] = [one.line * vocab + token for token in extra]
        binding.push()
        binding.session.run_with_iobinding(binding.io, binding.options)
        binding.pull()
        self._begun.append(run)

    def _finish(self, run: Run) -> None:
        binding, question = run.binding, run.binding.question
        if question is None:
            self._check_hidden(binding)
        elif run.asked:
            lines = [one.line for one in run.asked]
            if not np.isfinite(question.answer.lse[lines]).all():
                raise EngineFault(f"logits are not finite after layers {self._spec.layers}")
            places = [Place(one.index, one.number) for one in run.asked]
            self._answers.write(places, _lines_of(question.answer, lines))
        if self._buffers.frame_out is not None and self._buffers.slots_out is not None:
            for slot, base in run.moves:
                self._buffers.frame_out[base] = self._buffers.slots_out[slot]

    def _check_tokens(self, rows: Sequence[Row], direct: bool) -> None:
        count = _tokens(rows)
        tokens = self._buffers.slots_in[rows[0].slot :] if direct else self._buffers.frame_in
        if not 0 <= int(tokens[:count].min()) <= int(tokens[:count].max()) < self._spec.model.vocab:
            raise ProtocolError(f"token ids beyond a vocabulary of {self._spec.model.vocab}")

    def _check_hidden(self, binding: Binding) -> None:
        assert binding.hidden_out is not None
        if not all_finite(binding.hidden_out, self._spec.precision_out):
            raise EngineFault(f"hidden states are not finite after layers {self._spec.layers}")

    # --- bindings ----------------------------------------------------------------------------------------

    def _shape(self, run: RunShape, asked: Sequence[Asked]) -> RunShape:
        """The shape of a run that is asked for these positions."""
        if not self._spec.is_last:
            return run
        return run._replace(
            wanted=max(len(asked), self._least_wanted),
            top_k=max((one.row.top_k for one in asked), default=1),
            extra=max((len(one.row.extra_ids) for one in asked), default=0),
            whole=any(one.row.whole_logits for one in asked),
        )

    def _bind(self, shape: RunShape) -> Binding:
        assert self._sessions is not None
        spec, buffers = self._spec, self._buffers
        session = self._sessions.of(shape)
        binding = Binding(session, shape, self._memory, self._run_options(shape.captured), spec.model.vocab)
        binding.bind_cache(self._arena)
        source, target = (
            (buffers.slots_in, buffers.slots_out) if shape.at < 0 else (buffers.frame_in, buffers.frame_out)
        )
        first = shape.slot if shape.at < 0 else shape.at
        part = slice(first, first + shape.batch * shape.tokens)
        grid = (shape.batch, shape.tokens, *source.shape[1:])
        binding.bind_tokens(names.TOKENS if spec.is_first else names.HIDDEN_IN, source[part].reshape(grid))
        if target is None:
            binding.bind_question(self._parts)
        else:
            binding.bind_hidden(target[part].reshape(shape.batch, shape.tokens, -1))
        if shape.captured:
            binding.total[()] = positions(spec)  # the longest that the replayed kernels may meet
        return binding

    def _run_options(self, captured: bool) -> ort.RunOptions:
        options = ort.RunOptions()
        if self._memory.captures:
            options.add_run_config_entry("gpu_graph_id", str(next(self._graphs)) if captured else NOT_CAPTURED)
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options

    def _hidden_out(self, rows: Sequence[Row], direct: bool) -> memoryview:
        buffers, tokens = self._buffers, _tokens(rows)
        assert buffers.frame_out is not None
        assert buffers.slots_out is not None
        if direct:
            return as_bytes(buffers.slots_out[rows[0].slot : rows[0].slot + tokens])
        return as_bytes(buffers.frame_out[:tokens])


def _lines_of(answer: RunAnswer, lines: list[int]) -> RunAnswer:
    """The answers at these lines; a captured run answers for every slot of its range."""
    if lines == list(range(len(lines))):
        return answer
    return RunAnswer(
        answer.logits[lines], answer.ids[lines], answer.lse[lines], answer.lse_t[lines], answer.extra[lines]
    )


def _is_slot_range(rows: Sequence[Row]) -> bool:
    """Whether the rows are one token each of neighbouring slots, in their order."""
    first = rows[0].slot
    return all(row.count == 1 and row.slot == first + index for index, row in enumerate(rows))


def _tokens(rows: Sequence[Row]) -> int:
    return sum(row.count for row in rows)


def _bases(rows: Sequence[Row]) -> list[int]:
    """Where each row's tokens begin in the frame."""
    bases, base = [], 0
    for row in rows:
        bases.append(base)
        base += row.count
    return bases
