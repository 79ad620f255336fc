"""A graph's weights as values of ONNX Runtime: the host's, to be copied, or a device's, once for several sessions."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort

from hyperlane.stage.cuda import CudaMemory
from hyperlane.stage.initialisers import APART, Graph
from hyperlane.stage.numbers import TypedArray

FOLDER = "session.model_external_initializers_file_folder_path"
"""Where files with a graph's initialisers lie."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A graph and its external initialisers. `folder`: they are where they are used, and lie there.

    None: they are to be copied.
    """

    model: bytes
    values: Mapping[str, ort.OrtValue]
    folder: Path | None = None

    def add_to(self, settings: ort.SessionOptions) -> None:
        """Let a session of these settings use them."""
        if self.folder is None:
            settings.add_external_initializers(list(self.values), list(self.values.values()))
            return
        settings.add_session_config_entry(FOLDER, str(self.folder))
        for name, value in self.values.items():
            settings.add_initializer(name, value)


def _value_at(memory: CudaMemory, place: int, array: TypedArray) -> ort.OrtValue:
    """What lies on the device as a value of ONNX Runtime's, which makes such values for the outputs of a binding."""
    binding = _views().io_binding()
    binding.bind_output("y", memory.provider, memory.index, array.dtype.type, array.shape, place)
    return binding.get_outputs()[0]


@functools.cache
def _views() -> ort.InferenceSession:
    return ort.InferenceSession(one_node(), providers=["CPUExecutionProvider"])


def one_node(op: str = "Identity", *inputs: str, kind: int = onnx.TensorProto.FLOAT) -> bytes:
    """The smallest model: y, of any shape, is made of x."""
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node(op, list(inputs) or ["x"], ["y"])
    ends = [value("x", kind, None)], [value("y", kind, None)]
    graph = onnx.helper.make_graph([node], "views", *ends)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    made: bytes = model.SerializeToString()
    return made


def given(graph: Graph) -> Weights:
    """The weights as the host has them: a session for another device copies them."""
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in graph.arrays.items()}
    return Weights(graph.model, values)


def copied(graph: Graph, apart: Graph, memory: CudaMemory, folder: Path) -> tuple[Weights, Weights]:
    """The weights on the device for both graphs, once: the arrays of `apart` are those of `graph`, or views of them.

    `folder` has to be there when sessions are made.
    """
    (folder / APART).touch()
    held = sorted(graph.arrays.items(), key=lambda item: item[1].ctypes.data)
    begins = [array.ctypes.data for _, array in held]
    places = memory.copy_in([array for _, array in held])
    own = {name: place for (name, _), place in zip(held, places, strict=True)}

    def place_of(name: str, array: TypedArray) -> int:
        if graph.arrays.get(name) is array:
            return own[name]
        at = bisect_right(begins, array.ctypes.data) - 1
        return places[at] + array.ctypes.data - begins[at]

    def weights(graph: Graph) -> Weights:
        values = {name: _value_at(memory, place_of(name, array), array) for name, array in graph.arrays.items()}
        return Weights(graph.model, values, folder)

    return weights(graph), weights(apart)
