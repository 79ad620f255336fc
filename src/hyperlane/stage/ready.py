"""A stage's weights in the form that the engine maps as it is: each unit packed once, checked at a start.

Knows what a unit is made of and what may be folded. How weights are packed it asks an engine.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hyperlane.graph.forms import (
    Forms,
    MatrixForm,
    Offsets,
    packed_name,
    part_forms,
    scales_name,
    weight_names,
    zeros_name,
)
from hyperlane.graph.packing import build_packing, input_name
from hyperlane.models.quant_layout import unpack_nibbles
from hyperlane.models.weights import QuantMatrix
from hyperlane.stage.folding import Folder, marked_matrix, zero_points
from hyperlane.stage.initialisers import given, mapped
from hyperlane.stage.weights import EMBEDDING, Array, Arrays, UnitWeights, as_columns
from hyperlane.store.ready_file import NewTensor, ReadyTensor, ReadyUnit

CHECK = "check"
"""Prefix of a tensor that is no weight: what ones times the matrix at the path behind it are."""

_TOLERANCE = 1e-3

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """What an engine made of an initialiser: its buffers under its key."""

    key: str
    buffers: tuple[Bytes, ...]


class Packer(Protocol):
    """The engine's side of it."""

    def pack(self, model: bytes, arrays: Arrays) -> Mapping[str, Packed]:
        """Load a model whose external initialisers are `arrays`; what was packed of them, by name."""
        ...

    def multiply(self, model: bytes, feeds: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Run a model with one output, whose initialisers lie below the store's root."""
        ...


class UnitPacker:
    """Makes ready units of one arithmetic."""

    def __init__(self, packer: Packer, accuracy: int) -> None:
        self._packer = packer
        self._accuracy = accuracy
        self._folder = Folder(self._pack_one)

    @cached_property
    def mark(self) -> str:
        """What tells packings apart that are not interchangeable: a hash of what a few matrices become."""
        digest = hashlib.sha256()
        for bits, block in itertools.product((4, 8), (16, 32)):
            packed = self._pack_one(marked_matrix(64, 256, bits, block))
            digest.update(b"" if packed is None else packed.data)
        return digest.hexdigest()

    def make(self, weights: UnitWeights) -> tuple[list[NewTensor], str]:
        """A unit's contents for the store. What cannot be folded becomes columns, matrix by matrix."""
        weights = as_columns(weights, [path for path, matrix in weights.to_fold.items() if not self._can_fold(matrix)])
        forms = {path: parts for path, parts in weights.forms.items() if path != EMBEDDING}
        packed = self._pack(forms, weights.arrays) if forms else {}
        failed = [p for p, matrix in weights.to_fold.items() if not self._fold(matrix, packed.get(packed_name(p)))]
        if failed:
            return self.make(as_columns(weights, failed))
        tensors = [_new_tensor(name, array, packed.get(name)) for name, array in weights.arrays.items()]
        if weights.to_fold:
            path, matrix = next(iter(weights.to_fold.items()))
            tensors.append(NewTensor(f"{CHECK}/{path}", row_sums(matrix)))
        return tensors, forms_text(weights.forms)

    def _can_fold(self, matrix: QuantMatrix) -> bool:
        return self._folder.places(matrix.rows, matrix.columns, matrix.bits, matrix.block) is not None

    def _fold(self, matrix: QuantMatrix, packed: Packed | None) -> bool:
        return packed is not None and len(packed.buffers) == 1 and self._folder.fold(matrix, packed.buffers[0])

    def _pack(self, forms: Forms, arrays: Arrays) -> Mapping[str, Packed]:
        used = {name: arrays[name] for path, form in part_forms(forms) for name in weight_names(path, form)}
        model = build_packing(forms, self._accuracy, [given(name, array) for name, array in used.items()])
        return self._packer.pack(model, used)

    def _pack_one(self, matrix: QuantMatrix) -> Bytes | None:
        path = "matrix"
        assert matrix.zeros is not None
        arrays: dict[str, Array] = {
            packed_name(path): matrix.packed,
            scales_name(path): matrix.scales,
            zeros_name(path): matrix.zeros,
        }
        form = MatrixForm(matrix.rows, matrix.columns, matrix.bits, matrix.block, zeros=True)
        made = self._pack({path: (form,)}, arrays).get(packed_name(path))
        return made.buffers[0] if made is not None and len(made.buffers) == 1 else None

    def check(self, unit: ReadyUnit) -> bool:
        """Whether a folded matrix of a unit gives what it should: whether the engine uses what was packed."""
        found = next((tensor for tensor in unit.tensors if tensor.name.startswith(f"{CHECK}/")), None)
        if found is None:
            return True
        path = found.name.removeprefix(f"{CHECK}/")
        expected = np.fromfile(unit.data, np.float32, found.shape[0], offset=found.span.offset)
        form = next(form for name, form in part_forms(read_forms(unit)) if name == path)
        own = [mapped(unit, tensor) for tensor in weights_of(unit) if tensor.name.startswith(f"{path}/")]
        model = build_packing({path: (form,)}, self._accuracy, own)
        ones = np.ones((1, 1, form.packed_columns), np.float32)
        made = self._packer.multiply(model, {input_name(path): ones}).reshape(-1)
        return bool(np.abs(made - expected).max() <= _TOLERANCE * np.abs(expected).max())


def weights_of(unit: ReadyUnit) -> list[ReadyTensor]:
    """The tensors of a unit that a graph uses."""
    return [tensor for tensor in unit.tensors if not tensor.name.startswith(f"{CHECK}/")]


def forms_text(forms: Forms) -> str:
    """Forms as a ready unit's note."""
    return json.dumps({path: [asdict(form) for form in parts] for path, parts in forms.items()})


def read_forms(unit: ReadyUnit) -> dict[str, tuple[MatrixForm, ...]]:
    """The forms in a ready unit's note."""
    return {
        path: tuple(MatrixForm(**{**part, "offsets": Offsets(part["offsets"])}) for part in parts)
        for path, parts in json.loads(unit.note).items()
    }


def mapped_arrays(unit: ReadyUnit) -> UnitWeights:
    """A unit whose tensors are arrays as they are used, mapped from its file."""
    data = np.memmap(unit.data, np.uint8, mode="r")
    arrays = {
        tensor.name: data[tensor.span.offset : tensor.span.offset + tensor.span.length]
        .view(tensor.dtype)
        .reshape(tensor.shape)
        for tensor in unit.tensors
    }
    return UnitWeights(arrays, read_forms(unit))


def row_sums(matrix: QuantMatrix) -> npt.NDArray[np.float32]:
    """The sum of each row's weights, float32 [rows]."""
    assert matrix.offsets is not None
    q = unpack_nibbles(matrix.packed, matrix.block) if matrix.bits == 4 else matrix.packed
    centred = q.sum(axis=-1, dtype=np.float64) - matrix.block * zero_points(matrix)
    sums: npt.NDArray[np.float64] = (matrix.scales * centred + matrix.block * matrix.offsets).sum(axis=1)
    return sums.astype(np.float32)


def _new_tensor(name: str, array: Array, packed: Packed | None) -> NewTensor:
    if packed is None:
        return NewTensor(name, array)
    return NewTensor(name, array, packed.key, packed.buffers)
