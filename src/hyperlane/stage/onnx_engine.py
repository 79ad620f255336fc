"""The engine on ONNX Runtime: one session, one KV arena, frames in and out of bound memory. Knows no device."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import onnxruntime as ort

from hyperlane.core import CANDIDATES_K, ElementType, Row, StageSpec
from hyperlane.errors import EngineFault, ProtocolError
from hyperlane.graph import names
from hyperlane.graph.candidates import parts_of
from hyperlane.stage.answers import Answers, Place, RunAnswer
from hyperlane.stage.arena import KvArena, positions
from hyperlane.stage.bindings import SLOTS, Binding, BindingCache, RunShape, bytes_in
from hyperlane.stage.buffers import Buffers, all_finite, as_bytes
from hyperlane.stage.memory import Memory
from hyperlane.stage.numbers import element_of, numbers_of
from hyperlane.stage.onnx_errors import ORT_ERRORS
from hyperlane.stage.onnx_runs import Asked, Run, Sessions
from hyperlane.stage.options import EngineOptions
from hyperlane.stage.providers import provider_of
from hyperlane.stage.residency import release_freed
from hyperlane.stage.rows import SlotLengths, check_rows, check_size
from hyperlane.stage.runs import Batch, Piece, Runs, arrange, bucket, run_tokens

NOT_CAPTURED = "-1"
"""ONNX Runtime's graph id for a run that is to be neither captured nor replayed."""


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
        all_slots = RunShape(0, spec.slots, 1, SLOTS, wanted=spec.slots if spec.is_last else 0)
        header = bytes_in(all_slots) if options.fuse and memory.copies else 0
        self._buffers = Buffers.make(spec, memory, self._element, header)
        self._lengths = SlotLengths(spec.slots)
        self._answers = Answers(spec.model.vocab)
        self._bindings = BindingCache(self._bind)
        self._begun: list[Run] = []
        self._first = 0
        """Where the tokens of the frame that is computed begin in the frames' buffers."""

    @property
    def element(self) -> ElementType:
        """Float32 on CPU; on a GPU float16, where the family's residual stream fits it."""
        return self._element

    @property
    def private_bytes(self) -> int:
        """Bytes of the KV arena and the buffers; those of the arena are taken from the system as they are used."""
        return self._arena.nbytes + self._buffers.nbytes

    def input_buffer(self, rows: Sequence[Row], bank: int | None = None) -> memoryview:
        """See `Engine`; a frame whose rows are one token of neighbouring slots lands where it is computed."""
        tokens = _tokens(rows)
        if bank is not None:
            check_size(rows, self._spec)
            first = self._buffers.banks[bank]
            return as_bytes(self._buffers.frame_in[first : first + tokens])
        check_rows(rows, self._spec, self._lengths)
        if _is_slot_range(rows):
            return as_bytes(self._buffers.slots_in[rows[0].slot : rows[0].slot + tokens])
        return as_bytes(self._buffers.frame_in[:tokens])

    def step(self, rows: Sequence[Row], bank: int | None = None) -> Sequence[memoryview]:
        """See `Engine`."""
        self._begun.clear()
        direct = bank is None and _is_slot_range(rows)
        self._first = 0
        if bank is not None:
            check_rows(rows, self._spec, self._lengths)
            self._first = self._buffers.banks[bank]
        if self._spec.is_first:
            self._check_tokens(rows, direct)
        try:
            runs = self._runs_of(rows)
            for piece in runs.pieces:
                self._run_piece(rows, piece)
            if runs.both is not None:
                self._run_both(rows, *runs.both)
            for batch in runs.batches:
                self._run_batch(rows, batch, direct)
            self._answers.begin(rows)
            self._memory.wait()
        except ORT_ERRORS as error:
            with contextlib.suppress(*ORT_ERRORS):
                self._memory.wait()  # the runs that were begun read what the next step is about to write
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
        if self._sessions is not None:
            self._sessions.close()
        self._sessions = None
        self._keep = None
        self._memory.close()
        release_freed()

    # --- runs --------------------------------------------------------------------------------------------

    def _runs_of(self, rows: Sequence[Row]) -> Runs:
        assert self._sessions is not None
        singly = any(row.one_by_one for row in rows) and self._sessions.has_singles
        singles = self._singles if singly else 1
        return arrange(rows, self._run_tokens, singles=singles, alone=self._alone, beside=self._sessions.has_beside)

    def _run_piece(self, rows: Sequence[Row], piece: Piece) -> None:
        """Some tokens of one row."""
        row, at = rows[piece.row], self._first + piece.base + piece.offset
        asked = _asked_of(rows, piece)
        run = RunShape(row.slot, 1, piece.run, at, singly=piece.singly and piece.run > 1)
        binding = self._bindings.get(self._shape(run, asked))
        start = row.start + piece.offset
        if run.singly:  # stand-ins write behind all that the slot holds
            binding.lengths[: piece.count] = range(start, start + piece.count)
            binding.lengths[piece.count :] = max(start + piece.count, self._lengths[row.slot])
        else:
            binding.lengths[0] = start + piece.run - 1
        binding.total[()] = int(binding.lengths.max()) + 1
        self._buffers.frame_in[self._first + _tokens(rows) : at + piece.run] = 0
        self._begin(Run(binding, asked))
        self._lengths.written(row.slot, row.start, start + piece.count)

    def _run_both(self, rows: Sequence[Row], batch: Batch, piece: Piece) -> None:
        """One token of each of several rows and some tokens of another one, which share all but attention."""
        row, bases, size, aside = rows[piece.row], _bases(rows, self._first), batch.size, self._buffers.aside
        start, at = row.start + piece.offset, self._first + piece.base + piece.offset
        self._lengths.written(row.slot, row.start, start + piece.count)
        wanting = [Asked(rows[i], i, 0, rows[i].slot - batch.first, n) for n, i in enumerate(_wanting(rows, batch))]
        asked = [*wanting, *_asked_of(rows, piece, size, len(wanting))]
        run = RunShape(batch.first, size, piece.run, aside, beside=row.slot)
        binding = self._bindings.get(self._shape(run, asked))
        assert binding.beside is not None
        binding.beside[0][0], binding.beside[1][()] = start + piece.run - 1, start + piece.run
        self._tell_lengths(binding, rows, batch)
        binding.total[()] = int(binding.lengths.max()) + 1
        given = self._buffers.frame_in
        given[self._first + _tokens(rows) : at + piece.run] = 0
        given[aside : aside + size] = 0
        for index in batch.rows:
            given[aside + rows[index].slot - batch.first] = given[bases[index]]
        given[aside + size : aside + size + piece.run] = given[at : at + piece.run]
        moves = []
        if (out := self._buffers.frame_out) is not None:
            places = [(aside + rows[index].slot - batch.first, bases[index], 1) for index in batch.rows]
            moves = [(out[a : a + n], base) for a, base, n in (*places, (aside + size, at, piece.count))]
        self._begin(Run(binding, asked, moves))
        self._note_written(rows, batch)

    def _run_batch(self, rows: Sequence[Row], batch: Batch, direct: bool) -> None:
        """One token of each of several rows; slots without a row write to their first unused entry."""
        bases, buffers = _bases(rows, self._first), self._buffers
        if not direct:
            for index in batch.rows:
                buffers.slots_in[rows[index].slot] = buffers.frame_in[bases[index]]
        wanting = _wanting(rows, batch)
        binding = self._batch_binding(rows, batch, wanting)
        first, captured = binding.shape.slot, binding.shape.captured
        asked = [
            Asked(rows[i], i, 0, rows[i].slot - first, rows[i].slot - first if captured else line)
            for line, i in enumerate(wanting)
        ]
        self._tell_lengths(binding, rows, batch)
        if not captured:
            binding.total[()] = int(binding.lengths.max()) + 1
        moves = []
        if not direct and (out := buffers.slots_out) is not None:
            moves = [(out[rows[index].slot : rows[index].slot + 1], bases[index]) for index in batch.rows]
        self._begin(Run(binding, asked, moves))
        self._note_written(rows, batch)

    def _tell_lengths(self, binding: Binding, rows: Sequence[Row], batch: Batch) -> None:
        first = binding.shape.slot
        lengths = self._lengths.of(first, binding.shape.batch)
        for index in batch.rows:
            lengths[rows[index].slot - first] = rows[index].start
        binding.lengths[:] = lengths

    def _note_written(self, rows: Sequence[Row], batch: Batch) -> None:
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
            lines = [one.line for one in run.asked]
            question.wanted[lines] = [one.token for one in run.asked]
            question.inverse_temperature[lines, 0] = [1.0 / one.row.temperature for one in run.asked]
            for one in run.asked:
                if extra := one.row.extra_ids:
                    question.extra[one.line, : len(extra)] = [one.line * vocab + token for token in extra]
        if binding.fused is not None and any(run.binding.fused is not None for run in self._begun):
            self._memory.wait()  # until the other's is copied
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
            places = [Place(one.at, one.number) for one in run.asked]
            self._answers.write(places, _lines_of(question.answer, lines))
        for written, base in run.moves:
            assert self._buffers.frame_out is not None
            self._buffers.frame_out[base : base + len(written)] = written

    def _check_tokens(self, rows: Sequence[Row], direct: bool) -> None:
        count = _tokens(rows)
        tokens = self._buffers.slots_in[rows[0].slot :] if direct else self._buffers.frame_in[self._first :]
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
        source, target = (
            (buffers.slots_in, buffers.slots_out) if shape.at < 0 else (buffers.frame_in, buffers.frame_out)
        )
        first = shape.slot if shape.at < 0 else shape.at
        part, grid = slice(first, first + math.prod(shape.grid)), shape.grid
        given = source[part].reshape(*grid, *source.shape[1:])
        fused = buffers.fused_with(given, bytes_in(shape))
        binding = Binding(session, shape, self._memory, self._run_options(shape.captured), spec.model.vocab, fused)
        binding.bind_cache(self._arena)
        binding.bind_tokens(names.TOKENS if spec.is_first else names.HIDDEN_IN, given)
        if target is None:
            binding.bind_question(self._parts)
        else:
            binding.bind_hidden(target[part].reshape(*grid, -1))
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
        return as_bytes(buffers.frame_out[self._first : self._first + tokens])


def _asked_of(rows: Sequence[Row], piece: Piece, token: int = 0, line: int = 0) -> list[Asked]:
    """The wanted positions of a piece whose first token is `token` in its run, and has so many answers before it."""
    row, end = rows[piece.row], piece.offset + piece.count
    wanted = [(number, offset) for number, offset in enumerate(row.want) if piece.offset <= offset < end]
    return [
        Asked(row, piece.row, number, token + offset - piece.offset, line + n)
        for n, (number, offset) in enumerate(wanted)
    ]


def _wanting(rows: Sequence[Row], batch: Batch) -> list[int]:
    return [index for index in batch.rows if rows[index].want]


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


def _bases(rows: Sequence[Row], first: int = 0) -> list[int]:
    """Where each row's tokens begin, those of the frame at `first`."""
    bases, base = [], first
    for row in rows:
        bases.append(base)
        base += row.count
    return bases
