"""The graph of a stage: embedding, a range of decoder layers, projection; any of the three may be absent.

Knows what all families share. What a family does differently is in its own file (`llama`, `gemma3`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from hyperlane.core import LayerRange, ModelFacts, Precision, RopeFacts
from hyperlane.graph import candidates, names, wire_codec
from hyperlane.graph.attention import Attention, Kind
from hyperlane.graph.builder import GraphBuilder
from hyperlane.graph.forms import Forms, packed_name, scales_name, values_name, zeros_name
from hyperlane.graph.matmul import Matmuls
from hyperlane.graph.numbers import Numbers, numbers_of

CLOSING_NORM = "output/norm"


@dataclass(frozen=True, slots=True)
class StageShape:
    """What a graph is built for. `positions`: entries of a slot in the KV arena; `accuracy`: see `Matmuls`.

    `half_cache`: KV entries, and the arithmetic around attention, are float16. `half`: all else is too, where the
    family allows it. `precision_in`, `precision_out`: of hidden states. `top_parts`: see `candidates`.
    `gains_in`, `gains_out`: what packed values were and are multiplied by, float32 [hidden]; None: by nothing.
    `fused_gate`: the device has `GatedRMSNorm`. `singles`, `beside`: see `Attention`.
    """

    facts: ModelFacts
    layers: LayerRange
    embeds: bool
    projects: bool
    positions: int
    forms: Forms
    accuracy: int = 4
    half_cache: bool = False
    half: bool = False
    precision_in: Precision = Precision.RAW
    precision_out: Precision = Precision.RAW
    gains_in: wire_codec.Floats | None = None
    gains_out: wire_codec.Floats | None = None
    top_parts: int = 1
    fused_gate: bool = False
    singles: int = 0
    beside: bool = False

    @property
    def numbers(self) -> Numbers:
        """Types of the values."""
        return numbers_of(self.facts.family, half=self.half, half_cache=self.half_cache)


@dataclass(frozen=True, slots=True)
class Stream:
    """The residual stream between two sub-layers: `hidden`, to which `branch` is still to be added ("" for nothing).

    Adding and normalising are one operator, so the sum is left to whoever needs it.
    """

    hidden: str
    branch: str = ""


class Decoder(ABC):
    """Builds the graph of one stage; `build` is called once."""

    def __init__(self, shape: StageShape) -> None:
        self.shape = shape
        self.facts = shape.facts
        self.graph = GraphBuilder(f"{shape.facts.name} {shape.layers}")
        self.numbers = shape.numbers
        self.matmuls = Matmuls(self.graph, shape.forms, shape.accuracy)
        self._attention = Attention(
            self.graph, shape.facts, self.numbers, shape.positions, shape.singles, beside=shape.beside
        )

    @abstractmethod
    def layer(self, stream: Stream, index: int) -> Stream:
        """Add layer `index` to the graph."""

    def build(self, weights: Sequence[TensorProto]) -> bytes:
        """Return the serialised model, its initialisers the constants of the graph and `weights`."""
        graph = self.graph
        stream = Stream(self._embed()) if self.shape.embeds else self._received()
        if len(self.shape.layers):
            graph.input(names.LENGTHS, TensorProto.INT32, [self.shape.singles or "batch"])
            graph.input(names.TOTAL, TensorProto.INT32, [])
            if self.shape.beside:
                graph.input(names.COUNTS, TensorProto.INT64, [2])
                graph.input(names.BESIDE_LENGTHS, TensorProto.INT32, [1])
                graph.input(names.BESIDE_TOTAL, TensorProto.INT32, [])
        if self.shape.projects:
            graph.input(names.WANTED, TensorProto.INT64, ["wanted"])
        for index in range(self.shape.layers.first, self.shape.layers.last):
            stream = self.layer(stream, index)
        if self.shape.projects:
            self._project(stream)
        else:
            self._pass_on(stream)
        return graph.model(weights)

    # --- what layers are made of -------------------------------------------------------------------------

    def norm(self, stream: Stream, path: str) -> tuple[str, str]:
        """RMS norm of the stream with the weights at `path`: (the normalised sum, to be multiplied; the sum)."""
        epsilon = self.facts.rms_eps
        if not stream.branch:
            return self.to_matrix(self.plain_norm(stream.hidden, path)), stream.hidden
        outputs = [path, "", "", f"{path}/sum"]
        inputs = [stream.hidden, stream.branch, values_name(path)]
        self.graph.contrib("SkipSimplifiedLayerNormalization", inputs, path, outputs=outputs, epsilon=epsilon)
        return self.to_matrix(path), f"{path}/sum"

    def to_matrix(self, x: str) -> str:
        """A value of the stream's type as what is multiplied."""
        return self._cast(x, self.numbers.stream, self.numbers.matrix, f"{x}/narrow")

    def to_stream(self, x: str) -> str:
        """A product as a value of the stream's type."""
        return self._cast(x, self.numbers.matrix, self.numbers.stream, f"{x}/wide")

    def plain_norm(self, x: str, path: str) -> str:
        """RMS norm over the last axis with the weights at `path`."""
        return self.graph.node(
            "SimplifiedLayerNormalization", [x, values_name(path)], path, axis=-1, epsilon=self.facts.rms_eps
        )

    def attention(self, qkv: Sequence[str], index: int, *, window: int = -1, rope: RopeFacts | None = None) -> str:
        """Attention over the slot's KV entries, which it also extends. `qkv`: one packed value, or q, k and v."""
        return self._attention.add(qkv, index, Kind(window, rope or self.facts.rope))

    def split(self, x: str, sizes: Mapping[str, int]) -> list[str]:
        """Take the last axis apart; each part is named after x."""
        outputs = [f"{x}/{name}" for name in sizes]
        counts = list(sizes.values())
        lengths = self.graph.constant("sizes." + ".".join(map(str, counts)), np.array(counts, np.int64))
        self.graph.node("Split", [x, lengths], f"{x}/split", outputs=outputs, axis=-1)
        return outputs

    def matmul_split(self, x: str, path: str, sizes: Mapping[str, int]) -> list[str]:
        """The product with the weights at `path`, taken apart; nothing is copied where they are held apart."""
        parts = self.matmuls.apart(x, path, [*sizes.values()])
        return parts or self.split(self.matmuls.matmul(x, path), sizes)

    def wanted_only(self, x: str, index: int) -> str:
        """Of the model's last layer only what is asked for goes on past attention: x [1, wanted, …], else x as is."""
        if not (self.shape.projects and index == self.facts.layers - 1):
            return x
        self.matmuls.may_be_empty = True
        return self._wanted(x)

    # --- the ends ----------------------------------------------------------------------------------------

    def _received(self) -> Stream:
        """The sum that the stage before sent, and nothing to add to it.

        The nothing is explicit, so that the first norm is the same kernel as inside a stage: the two kernels sum in
        another order, and int8 activations turn a last bit into another answer.
        """
        graph, size, precision = self.graph, self.facts.hidden, self.shape.precision_in
        if precision is Precision.RAW:
            hidden = graph.input(names.HIDDEN_IN, self.numbers.stream, ["batch", "tokens", size])
        else:
            hidden = self._cast(self._single_in(), TensorProto.FLOAT, self.numbers.stream, "received/hidden")
        zero = graph.constant("received/zero", np.array(0.0, self.numbers.stream_dtype))
        return Stream(hidden, graph.node("Mul", [hidden, zero], "received/nothing"))

    def _single_in(self) -> str:
        """What was sent, as float32."""
        size, precision = self.facts.hidden, self.shape.precision_in
        if precision is Precision.F32:
            return self.graph.input(names.HIDDEN_IN, TensorProto.FLOAT, ["batch", "tokens", size])
        packed = self.graph.input(names.HIDDEN_IN, TensorProto.UINT8, ["batch", "tokens", "token_bytes"])
        return wire_codec.unpack(self.graph, packed, size, precision, "received/single", gains=self.shape.gains_in)

    def _pass_on_single(self, stream: Stream) -> None:
        if self.numbers.stream == TensorProto.FLOAT:
            self._sum(stream, names.HIDDEN_OUT)
        else:
            hidden = self._sum(stream, "passed/hidden")
            self._cast(hidden, self.numbers.stream, TensorProto.FLOAT, names.HIDDEN_OUT)
        self.graph.output(names.HIDDEN_OUT, TensorProto.FLOAT, ["batch", "tokens", self.facts.hidden])

    def _pass_on(self, stream: Stream) -> None:
        """The sum, as the link to the next stage carries it."""
        graph, size, precision = self.graph, self.facts.hidden, self.shape.precision_out
        if precision is Precision.RAW:
            self._sum(stream, names.HIDDEN_OUT)
            graph.output(names.HIDDEN_OUT, self.numbers.stream, ["batch", "tokens", size])
            return
        if precision is Precision.F32:
            self._pass_on_single(stream)
            return
        hidden = self._sum(stream, "passed/hidden")
        single = self._cast(hidden, self.numbers.stream, TensorProto.FLOAT, "passed/single")
        wire_codec.pack(graph, single, size, precision, names.HIDDEN_OUT, gains=self.shape.gains_out)
        graph.output(names.HIDDEN_OUT, TensorProto.UINT8, ["batch", "tokens", "token_bytes"])

    def _embed(self) -> str:
        """Look up the rows of the token ids; scaled where the family does that."""
        graph, facts, path = self.graph, self.facts, "embedding"
        tokens = graph.input(names.TOKENS, TensorProto.INT32, ["batch", "tokens"])
        (form,) = self.shape.forms[path]
        if form.bits == 0:
            found = graph.node("Gather", [values_name(path), tokens], f"{path}/row", axis=0)
        else:
            inputs = [packed_name(path), tokens, scales_name(path)] + ([zeros_name(path)] if form.zeros else [])
            found = graph.contrib(
                "GatherBlockQuantized",
                inputs,
                f"{path}/row",
                bits=form.bits,
                block_size=form.block,
                gather_axis=0,
                quantize_axis=1,
            )
        if facts.embedding_scale == 1.0:
            return found
        scale = graph.constant(f"{path}/scale", np.array(facts.embedding_scale, self.numbers.stream_dtype))
        return graph.node("Mul", [found, scale], path)

    def _project(self, stream: Stream) -> None:
        if not len(self.shape.layers):
            stream = Stream(self._wanted(stream.hidden))
        normed, _ = self.norm(stream, CLOSING_NORM)
        projected = self.matmuls.matmul(normed, "output")
        half = self.numbers.matrix == TensorProto.FLOAT16
        candidates.add(self.graph, projected, self.facts, self.shape.top_parts, half=half)

    def _wanted(self, x: str) -> str:
        """Rows `wanted` of x, counted over batch and tokens: [1, wanted, …]."""
        flat = self.graph.constant("flat", np.array([1, -1, 0], np.int64))
        rows = self.graph.node("Reshape", [x, flat], f"{x}/flat")
        return self.graph.node("Gather", [rows, names.WANTED], f"{x}/wanted", axis=1)

    def _sum(self, stream: Stream, name: str) -> str:
        if not stream.branch:
            return self.graph.node("Identity", [stream.hidden], name)
        return self.graph.node("Add", [stream.hidden, stream.branch], name)

    def _cast(self, x: str, have: int, want: int, name: str) -> str:
        return x if have == want else self.graph.node("Cast", [x], name, to=want)
