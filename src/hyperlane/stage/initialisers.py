"""Initialisers of a graph whose values lie elsewhere: in arrays that a session is given, or in a mapped file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from onnx import TensorProto

from hyperlane.store.ready_file import DATA, ReadyTensor, ReadyUnit, Span

APART = "given-apart"
"""Stands for a file's name: a session looks whether it is there, also where it is given the values."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A serialised graph, and its external initialisers by name."""

    model: bytes
    arrays: Mapping[str, npt.NDArray[Any]]


_TYPES: Mapping[str, int] = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def given(name: str, array: npt.NDArray[Any]) -> TensorProto:
    """An initialiser whose values the session is given apart, by name."""
    return _external(name, _TYPES[str(array.dtype)], array.shape, {"location": APART})


def beside(name: str, array: npt.NDArray[Any], file: str, span: Span) -> TensorProto:
    """An initialiser in a file in the model's own folder."""
    entries = {"location": file, "offset": str(span.offset), "length": str(span.length)}
    return _external(name, _TYPES[str(array.dtype)], array.shape, entries)


def mapped(unit: ReadyUnit, tensor: ReadyTensor) -> TensorProto:
    """An initialiser in a ready file, its place relative to the folder of all units.

    `prepacked_0` is ONNX Runtime's own: the key of a kernel's packed weights and their buffers in the same file.
    """
    entries = {
        "location": f"{unit.folder.name}/{DATA}",
        "offset": str(tensor.span.offset),
        "length": str(tensor.span.length),
    }
    if tensor.packed_key:
        entries["prepacked_0"] = "|".join([tensor.packed_key, *(_buffer(span) for span in tensor.packed)])
    return _external(tensor.name, _TYPES[tensor.dtype], tensor.shape, entries)


def read_packed(tensor: TensorProto) -> tuple[str, tuple[Span, ...]]:
    """Key and buffers of an initialiser's packed weights in a file that ONNX Runtime wrote; "" for none."""
    for entry in tensor.external_data:
        if entry.key == "prepacked_0":
            key, *buffers = entry.value.split("|")
            places = [buffer.split(";") for buffer in buffers]
            return key, tuple(Span(int(place[0]), int(place[1])) for place in places)
    return "", ()


def _buffer(span: Span) -> str:
    return f"{span.offset};{span.length};0"


def _external(name: str, dtype: int, shape: tuple[int, ...], entries: Mapping[str, str]) -> TensorProto:
    tensor = TensorProto(name=name, dims=shape, data_type=dtype, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor
