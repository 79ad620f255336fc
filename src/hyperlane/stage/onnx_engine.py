"""The engine on ONNX Runtime: one session, one KV arena, frames in and out of bound memory. The only importer of it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from hyperlane.core import ElementType, Row, StageSpec
from hyperlane.errors import EngineFault, LoadFailed, ProtocolError
from hyperlane.graph import names
from hyperlane.stage.answers import Answers, Place
from hyperlane.stage.arena import KvArena
from hyperlane.stage.bindings import SLOTS, Binding, BindingCache, RunShape
from hyperlane.stage.buffers import Buffers, as_bytes
from hyperlane.stage.initialisers import read_packed
from hyperlane.stage.options import EngineOptions, KvElement
from hyperlane.stage.ready import Packed
from hyperlane.stage.rows import SlotLengths, check_rows
from hyperlane.stage.runs import Batch, Piece, batches, pieces, run_tokens
from hyperlane.stage.weights import Array, Arrays
from hyperlane.store.ready_store import UNFINISHED

ORT_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.ModelLoaded,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
"""What ONNX Runtime raises; they share no class of its own."""

RUNTIME = f"onnxruntime {ort.__version__}"

ERROR_SEVERITY = 3
"""ONNX Runtime's number for logging errors and worse."""


class Asked(NamedTuple):
    """A wanted position of a run: where its answer belongs, its row, and which token of the run it is."""

    place: Place
    row: Row
    token: int


class OnnxEngine:
    """Implements `Engine` over a session of a stage's graph."""

    def __init__(
        self, spec: StageSpec, session: ort.InferenceSession, options: EngineOptions, keep: object = None
    ) -> None:
        """Take over a session; `keep` is what must live as long as it."""
        self._spec = spec
        self._keep = keep
        self._session: ort.InferenceSession | None = session
        self._run_tokens = run_tokens(spec.model)
        self._arena = KvArena.make(spec, half=options.kv is KvElement.F16)
        self._buffers = Buffers.make(spec)
        self._lengths = SlotLengths(spec.slots)
        self._answers = Answers(spec.model.vocab)
        self._bindings = BindingCache(self._bind)

    @property
    def element(self) -> ElementType:
        """Activations are float32 on CPU."""
        return ElementType.F32

    @property
    def private_bytes(self) -> int:
        """Bytes of the KV arena and the buffers; those of the arena are taken from the system as they are used."""
        return self._arena.nbytes + self._buffers.nbytes

    def input_buffer(self, rows: Sequence[Row]) -> memoryview:
        """See `Engine`; a frame whose rows are one token of neighbouring slots lands where it is computed."""
        check_rows(rows, self._spec, self._lengths)
        tokens = sum(row.count for row in rows)
        if _is_slot_range(rows):
            return as_bytes(self._buffers.slots_in[rows[0].slot : rows[0].slot + tokens])
        return as_bytes(self._buffers.frame_in[:tokens])

    def step(self, rows: Sequence[Row]) -> Sequence[memoryview]:
        """See `Engine`."""
        self._answers.begin(rows)
        direct = _is_slot_range(rows)
        if self._spec.is_first:
            self._check_tokens(rows, direct)
        try:
            for piece in pieces(rows, self._run_tokens):
                self._run_piece(rows, piece)
            for batch in batches(rows):
                self._run_batch(rows, batch, direct)
        except ORT_ERRORS as error:
            raise EngineFault(f"the engine failed on layers {self._spec.layers}: {error}") from error
        if self._spec.is_last:
            return (self._answers.payload(),)
        return (self._hidden_out(rows, direct),)

    def copy(self, source: int, destination: int, count: int) -> None:
        """See `Engine`."""
        self._lengths.copied(source, destination, count)
        self._arena.copy(source, destination, count)

    def close(self) -> None:
        """See `Engine`."""
        self._bindings.clear()
        self._session = None
        self._keep = None

    # --- runs --------------------------------------------------------------------------------------------

    def _run_piece(self, rows: Sequence[Row], piece: Piece) -> None:
        """Some tokens of one row."""
        row = rows[piece.row]
        end = piece.offset + piece.count
        asked = [
            Asked(Place(piece.row, number), row, offset - piece.offset)
            for number, offset in enumerate(row.want)
            if piece.offset <= offset < end
        ]
        binding = self._bindings.get(self._shape(RunShape(row.slot, 1, piece.run, piece.base + piece.offset), asked))
        length = row.start + piece.offset + piece.run
        binding.lengths[0] = length - 1
        binding.total[()] = length
        self._run(binding, asked)
        self._lengths.written(row.slot, row.start, row.start + end)

    def _run_batch(self, rows: Sequence[Row], batch: Batch, direct: bool) -> None:
        """One token of each of several rows; slots without a row write to their first unused entry."""
        bases = _bases(rows)
        if not direct:
            for index in batch.rows:
                self._buffers.slots_in[rows[index].slot] = self._buffers.frame_in[bases[index]]
        asked = [Asked(Place(i, 0), rows[i], rows[i].slot - batch.first) for i in batch.rows if rows[i].want]
        binding = self._bindings.get(self._shape(RunShape(batch.first, batch.size, 1, SLOTS), asked))
        binding.lengths[:] = self._lengths.of(batch.first, batch.size)
        for index in batch.rows:
            binding.lengths[rows[index].slot - batch.first] = rows[index].start
        binding.total[()] = int(binding.lengths.max()) + 1
        self._run(binding, asked)
        for index in batch.rows:
            row = rows[index]
            self._lengths.written(row.slot, row.start, row.start + 1)
            if not direct and self._buffers.frame_out is not None and self._buffers.slots_out is not None:
                self._buffers.frame_out[bases[index]] = self._buffers.slots_out[row.slot]

    def _run(self, binding: Binding, asked: Sequence[Asked]) -> None:
        question = binding.question
        if question is not None and asked:
            question.wanted[:] = [one.token for one in asked]
            question.inverse_temperature[:, 0] = [1.0 / one.row.temperature for one in asked]
            for line, one in enumerate(asked if binding.shape.extra else ()):
                extra = one.row.extra_ids
                question.extra[line, : len(extra)] = [line * self._spec.model.vocab + token for token in extra]
        assert self._session is not None
        self._session.run_with_iobinding(binding.io)
        if question is None:
            self._check_hidden(binding)
        elif asked:
            if not np.isfinite(question.answer.lse).all():
                raise EngineFault(f"logits are not finite after layers {self._spec.layers}")
            self._answers.write([one.place for one in asked], question.answer)

    def _check_tokens(self, rows: Sequence[Row], direct: bool) -> None:
        count = sum(row.count for row in rows)
        tokens = self._buffers.slots_in[rows[0].slot :] if direct else self._buffers.frame_in
        if not 0 <= int(tokens[:count].min()) <= int(tokens[:count].max()) < self._spec.model.vocab:
            raise ProtocolError(f"token ids beyond a vocabulary of {self._spec.model.vocab}")

    def _check_hidden(self, binding: Binding) -> None:
        assert binding.hidden_out is not None
        if not math.isfinite(float(np.add.reduce(binding.hidden_out, axis=None))):
            raise EngineFault(f"hidden states are not finite after layers {self._spec.layers}")

    # --- bindings ----------------------------------------------------------------------------------------

    def _shape(self, run: RunShape, asked: Sequence[Asked]) -> RunShape:
        """The shape of a run that is asked for these positions."""
        if not self._spec.is_last:
            return run
        return run._replace(
            wanted=len(asked),
            top_k=max((one.row.top_k for one in asked), default=1),
            extra=max((len(one.row.extra_ids) for one in asked), default=0),
            whole=any(one.row.whole_logits for one in asked),
        )

    def _bind(self, shape: RunShape) -> Binding:
        assert self._session is not None
        spec, buffers = self._spec, self._buffers
        binding = Binding(self._session.io_binding(), shape)
        binding.bind_cache(self._arena)
        source, target = (
            (buffers.slots_in, buffers.slots_out) if shape.at < 0 else (buffers.frame_in, buffers.frame_out)
        )
        first = shape.slot if shape.at < 0 else shape.at
        part = slice(first, first + shape.batch * shape.tokens)
        grid = (shape.batch, shape.tokens, *source.shape[1:])
        binding.bind_tokens(names.TOKENS if spec.is_first else names.HIDDEN_IN, source[part].reshape(grid))
        if target is None:
            binding.bind_question(spec.model.vocab)
        else:
            binding.bind_hidden(target[part].reshape(shape.batch, shape.tokens, -1))
        return binding

    def _hidden_out(self, rows: Sequence[Row], direct: bool) -> memoryview:
        buffers, tokens = self._buffers, sum(row.count for row in rows)
        assert buffers.frame_out is not None
        assert buffers.slots_out is not None
        if direct:
            return as_bytes(buffers.slots_out[rows[0].slot : rows[0].slot + tokens])
        return as_bytes(buffers.frame_out[:tokens])


def _is_slot_range(rows: Sequence[Row]) -> bool:
    """Whether the rows are one token each of neighbouring slots, in their order."""
    first = rows[0].slot
    return all(row.count == 1 and row.slot == first + index for index, row in enumerate(rows))


def _bases(rows: Sequence[Row]) -> list[int]:
    """Where each row's tokens begin in the frame."""
    bases, base = [], 0
    for row in rows:
        bases.append(base)
        base += row.count
    return bases


def start(spec: StageSpec, model: bytes, arrays: Mapping[str, Array], options: EngineOptions) -> OnnxEngine:
    """An engine for a serialised graph whose external initialisers are `arrays`.

    Raises:
        LoadFailed: ONNX Runtime refused the graph.

    """
    settings = _settings(spec.threads, options)
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    settings.add_external_initializers(list(arrays), values)
    return OnnxEngine(spec, _session(model, settings), options, keep=(values, arrays))


def start_mapped(spec: StageSpec, model: bytes, root: Path, options: EngineOptions) -> OnnxEngine:
    """An engine for a serialised graph whose external initialisers lie in files below `root`, which are mapped.

    Raises:
        LoadFailed: ONNX Runtime refused the graph.

    """
    settings = _settings(spec.threads, options)
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(root))
    return OnnxEngine(spec, _session(model, settings), options)


class OnnxPacker:
    """Implements `Packer`: packs weights by letting ONNX Runtime save a session with what it made of them."""

    def __init__(self, root: Path) -> None:
        """Work below `root`, where ready files are."""
        self._root = root

    def pack(self, model: bytes, arrays: Arrays) -> Mapping[str, Packed]:
        """See `Packer`."""
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=self._root, ignore_cleanup_errors=True) as name:
            settings = _settings(1, EngineOptions())
            saved = Path(name) / "packed.onnx"
            settings.optimized_model_filepath = str(saved)
            for key, value in _SAVE_PACKED.items():
                settings.add_session_config_entry(key, value)
            values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
            settings.add_external_initializers(list(arrays), values)
            _session(model, settings)
            return _read_packed(saved)

    def multiply(self, model: bytes, feeds: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """See `Packer`."""
        settings = _settings(1, EngineOptions())
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._root))
        result: npt.NDArray[np.float32] = _session(model, settings).run(None, dict(feeds))[0]
        return result


_PACKED_DATA = "packed.bin"
_SAVE_PACKED = {
    "session.save_external_prepacked_constant_initializers": "1",
    "session.optimized_model_external_initializers_file_name": _PACKED_DATA,
    "session.optimized_model_external_initializers_min_size_in_bytes": "0",
}


def _read_packed(saved: Path) -> Mapping[str, Packed]:
    # Mapped, so that only what is changed takes memory; the file may lose its name meanwhile.
    data = np.memmap(saved.with_name(_PACKED_DATA), np.uint8, mode="c")
    found = {}
    for tensor in onnx.load(saved, load_external_data=False).graph.initializer:
        key, spans = read_packed(tensor)
        if key:
            found[tensor.name] = Packed(key, tuple(data[span.offset : span.offset + span.length] for span in spans))
    return found


def _session(model: bytes, settings: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise LoadFailed(f"ONNX Runtime refused a graph: {error}") from error


def available_providers() -> list[str]:
    """ONNX Runtime's names of the providers that its build has."""
    return list(ort.get_available_providers())


def _settings(threads: int, options: EngineOptions) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    # The graph is built of fused operators; rewriting it could make the ends of a stage differ from its middle.
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = ERROR_SEVERITY
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    return settings
