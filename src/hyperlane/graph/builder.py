"""Collects the nodes, inputs, outputs and constants of one ONNX graph. Knows operators, not models.

Node names are graph paths (`layer.3/attn/qkv`), so that a node seen in Netron can be grepped in the code, and a node's
first output bears its name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

CONTRIB = "com.microsoft"
OPSET = 21
IR_VERSION = 10

Attribute = int | float | str | Sequence[int]
Dim = int | str


class GraphBuilder:
    """One graph in the making. Names are given by the caller and must be unique."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._names: set[str] = set()
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, TensorProto] = {}

    def input(self, name: str, dtype: int, shape: Sequence[Dim]) -> str:
        """Declare a graph input; `dtype` is one of TensorProto's."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, name: str, dtype: int, shape: Sequence[Dim]) -> None:
        """Declare that the value `name` leaves the graph."""
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def constant(self, name: str, value: npt.NDArray[np.generic]) -> str:
        """Give the graph a value of its own; the same name twice means the same value."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def has_constant(self, name: str) -> bool:
        """Whether `constant` was called with this name."""
        return name in self._constants

    def has_node(self, name: str) -> bool:
        """Whether there is a node of this name."""
        return name in self._names

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        *,
        domain: str = "",
        outputs: Sequence[str] | None = None,
        **attributes: Attribute,
    ) -> str:
        """Add a node and return its first output: `name`, unless `outputs` lists others ("" for one not wanted)."""
        produced = [name] if outputs is None else list(outputs)
        self._names.add(name)
        self._nodes.append(helper.make_node(op, list(inputs), produced, name=name, domain=domain, **attributes))
        return produced[0]

    def contrib(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        *,
        outputs: Sequence[str] | None = None,
        **attributes: Attribute,
    ) -> str:
        """As `node`, for an operator of ONNX Runtime's own domain."""
        return self.node(op, inputs, name, domain=CONTRIB, outputs=outputs, **attributes)

    def model(self, weights: Sequence[TensorProto]) -> bytes:
        """The serialised model; `weights` are the initialisers that hold or point to the stage's weights."""
        initialisers = [*self._constants.values(), *weights]
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, initialisers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        made: bytes = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="hyperlane"
        ).SerializeToString()
        return made
