"""The operators that pack a hidden state for a link and unpack it, and their constants. The bytes: docs/wire-format.md.

A block's values are rotated by a Hadamard matrix, so that none stands out, and rounded: at int8 evenly, at int4 four at
a time to points (`wire_points`), after the block's largest value was taken out. Only operators whose result for a block
does not depend on the blocks beside it: no logarithm, whose vector and scalar code may differ in the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from hyperlane.core import Precision
from hyperlane.graph import wire_points
from hyperlane.graph.builder import GraphBuilder
from hyperlane.wire.packing import BLOCK, BLOCK_BYTES, NOT_FINITE, QUAD, packed_bytes

Floats = npt.NDArray[np.float32]

UNIT_CODE, OCTAVE_CODES = 102, 6
"""The scale of code c is 2 ** ((c − 102) / 6): from 2⁻¹⁷ to 2²⁵."""

TOP_STEP = 0.5
"""The value apart is a whole number of steps of so many scales, at most 127 of them."""

TOP_RATIO = 55.0
"""The scale is at least the value apart ÷ this, so that its steps are enough at the smaller scale tried too."""

ROUNDED_UP = 2 ** (1 / 30)
"""Tried at int4 are the smallest scale whose product with this is above what was measured, and the next smaller."""

_QUADS = BLOCK // QUAD
_UPPER_BYTES = BLOCK_BYTES[Precision.INT4] - 2 - 2 * _QUADS
_DIGITS = 5
"""Digits base 3 in an upper byte: of four numbers, and of the place of the value apart."""


def pack(
    graph: GraphBuilder, x: str, hidden: int, precision: Precision, name: str, *, gains: Floats | None = None
) -> str:
    """Add what packs x, float32 [batch, tokens, hidden]; returns `name`, uint8 [batch, tokens, token bytes].

    `gains`: what x is multiplied by before, float32 [hidden].
    """
    if gains is not None:
        x = graph.node("Mul", [x, graph.constant("packed/gains", gains)], "packed/weighed")
    shape = graph.constant("packed/blocks", np.array([0, 0, hidden // BLOCK, BLOCK], np.int64))
    blocks = graph.node("Reshape", [x, shape], "packed/values")
    packer = _Packer(graph, "packed")
    numbers = packer.int8(blocks) if precision is Precision.INT8 else packer.int4(blocks)
    octets = graph.node("Cast", [numbers], "packed/octets", to=TensorProto.UINT8)
    flat = graph.constant("packed/flat", np.array([0, 0, packed_bytes(hidden, precision)], np.int64))
    return graph.node("Reshape", [octets, flat], name)


def unpack(
    graph: GraphBuilder, x: str, hidden: int, precision: Precision, name: str, *, gains: Floats | None = None
) -> str:
    """Add what unpacks x, uint8 [batch, tokens, token bytes]; returns `name`, float32 [batch, tokens, hidden].

    `gains`: what the packed values were multiplied by, float32 [hidden].
    """
    blocks, size = hidden // BLOCK, BLOCK_BYTES[precision]
    shape = graph.constant("unpacked/blocks", np.array([0, 0, blocks, size], np.int64))
    octets = graph.node("Reshape", [x, shape], "unpacked/octets")
    numbers = graph.node("Cast", [octets], "unpacked/octets/single", to=TensorProto.FLOAT)
    unpacker = _Unpacker(graph, "unpacked")
    values = unpacker.int8(numbers) if precision is Precision.INT8 else unpacker.int4(numbers)
    flat = graph.constant("unpacked/flat", np.array([0, 0, hidden], np.int64))
    if gains is None:
        return graph.node("Reshape", [values, flat], name)
    weighed = graph.node("Reshape", [values, flat], "unpacked/weighed")
    return graph.node("Mul", [weighed, graph.constant("unpacked/gains", np.reciprocal(gains))], name)


class _Codec:
    """Short hands for operators under one path."""

    def __init__(self, graph: GraphBuilder, path: str) -> None:
        self._graph = graph
        self._path = path

    def op(self, op: str, *inputs: str | float | Floats, name: str) -> str:
        """A node; numbers and arrays among the inputs become constants."""
        given = [
            one if isinstance(one, str) else self.constant(f"{name}/{place}", np.asarray(one, np.float32))
            for place, one in enumerate(inputs)
        ]
        return self._graph.node(op, given, f"{self._path}/{name}")

    def cast(self, x: str, to: int, name: str) -> str:
        return self._graph.node("Cast", [x], f"{self._path}/{name}", to=to)

    def joined(self, parts: Sequence[str], name: str) -> str:
        return self._graph.node("Concat", parts, f"{self._path}/{name}", axis=-1)

    def shape(self, name: str, sizes: Sequence[int]) -> str:
        """A shape as a constant."""
        return self.constant(f"{name}/shape", np.array(sizes, np.int64))

    def constant(self, name: str, value: npt.NDArray[np.generic]) -> str:
        return self._graph.constant(f"{self._path}/{name}", value)

    def table_of_levels(self) -> str:
        """What points stand for; one table for both ends of a stage."""
        return self._graph.constant("wire/levels", wire_points.levels())

    def sum(self, op: str, x: str, name: str) -> str:
        axes = self.constant("last", np.array([-1], np.int64))
        return self._graph.node(op, [x, axes], f"{self._path}/{name}", keepdims=1)

    def floor(self, x: str, factor: float | Floats, name: str) -> str:
        """⌊x · factor⌋."""
        return self.op("Floor", self.op("Mul", x, factor, name=f"{name}/product"), name=name)

    def rest(self, x: str, divisor: float | Floats, quotient: str, name: str) -> str:
        """X − quotient · divisor."""
        return self.op("Sub", x, self.op("Mul", quotient, divisor, name=f"{name}/whole"), name=name)

    def scale(self, place: str, table: Floats) -> str:
        """The scale at a place, itself a float, of a table."""
        index = self.cast(place, TensorProto.INT32, "scale/index")
        return self._graph.node("Gather", [self.constant("scales", table), index], f"{self._path}/scale", axis=0)

    def places(self, index: str) -> str:
        """Where in a block the value apart stands: bool [.., 64]."""
        return self.op("Equal", index, np.arange(BLOCK, dtype=np.float32), name="apart/place")


class _Packer(_Codec):
    """Values [.., blocks, 64] to octets as floats."""

    def int8(self, values: str) -> str:
        """Scale, then 64 steps of it."""
        rotated = self.op("MatMul", values, hadamard(), name="rotated")
        largest = self.sum("ReduceMax", self.op("Abs", rotated, name="sizes"), "largest")
        below, scale = self._scale(largest, 127.49 * scales()[:NOT_FINITE])
        steps = self.op("Round", self.op("Div", rotated, scale, name="ratios"), name="steps")
        return self._behind_code(below, self.op("Add", steps, 128.0, name="shifted"))

    def int4(self, values: str) -> str:
        """Scale, the value apart and its place, then 16 points: by two scales, and what comes nearer to the values."""
        place = self._graph.node("ArgMax", [self.op("Abs", values, name="sizes")], f"{self._path}/argmax", axis=-1)
        is_here = self.places(self.cast(place, TensorProto.FLOAT, "apart/index"))
        here = self.cast(is_here, TensorProto.FLOAT, "apart/here")
        alone = self.op("Where", is_here, values, 0.0, name="apart/alone")
        top = self.sum("ReduceSum", alone, "apart/value")
        others = self.op("MatMul", self.op("Sub", values, alone, name="others"), hadamard(), name="others/rotated")
        codes, scale = self._two_scales(self._measure(others, top))
        both = self.shape("both", [0, 0, 0, 1, -1])
        step = self.op("Mul", scale, TOP_STEP, name="apart/step")
        top = self.op("Reshape", top, both, name="apart/value/both")
        steps = self.op("Round", self.op("Div", top, step, name="apart/ratio"), name="apart/steps")
        here_twice, values_twice = (
            self.op("Reshape", one, both, name=f"{name}/both") for name, one in (("here", here), ("values", values))
        )
        taken = self.op("Mul", self.op("Mul", steps, step, name="apart/taken"), here_twice, name="apart/taken/here")
        left = self.op("Sub", values_twice, taken, name="left")
        rotated = self.op("Div", self.op("MatMul", left, hadamard(), name="rotated"), scale, name="ratios")
        numbers, error = self._points(rotated)
        octets = self._octets(numbers, steps, here_twice)
        return self._nearer(self.joined([codes, octets], "octets/numbers"), error, scale)

    def _measure(self, others: str, top: str) -> str:
        """Squared: the larger of what the quads of the others and the value apart ask for; not a number beside one."""
        square = self.op("Mul", others, others, name="others/squares")
        sizes = self.op("MatMul", square, _of_quads(np.ones(QUAD)), name="others/sizes")
        largest = self.sum("ReduceMax", sizes, "others/largest")
        part = self.op("Mul", top, 1 / TOP_RATIO, name="apart/part")
        least = self.op("Mul", part, part, name="apart/least")
        is_less = self.op("Less", least, largest, name="apart/less")
        larger = self.op("Where", is_less, largest, least, name="larger")
        return self.op("Add", larger, self.op("Mul", largest, 0.0, name="others/nothing"), name="measure")

    def _two_scales(self, measure: str) -> tuple[str, str]:
        """Codes and scales to try, [.., blocks, 2, 1] each."""
        bounds = np.square(scales()[:NOT_FINITE].astype(np.float64) * ROUNDED_UP).astype(np.float32)
        is_below = self.op("Less", measure, bounds, name="below/each")
        below = self.sum("ReduceSum", self.cast(is_below, TensorProto.FLOAT, "below/counted"), "below")
        index = self.cast(below, TensorProto.INT32, "below/index")
        first = NOT_FINITE - np.arange(NOT_FINITE + 1)
        codes = np.stack([first, np.maximum(first - 1, 0)], -1)
        tables = {"codes": codes.astype(np.float32), "scale": scales()[codes]}
        found = [
            self._graph.node("Gather", [self.constant(f"{name}/table", table), index], f"{self._path}/{name}", axis=0)
            for name, table in tables.items()
        ]
        twice = self.shape("twice", [0, 0, 0, 2, 1])
        one, other = (self.op("Reshape", each, twice, name=f"{each.split('/')[-1]}/twice") for each in found)
        return one, other

    def _points(self, ratios: str) -> tuple[str, str]:
        """Numbers of points [.., 2, 16], and the squared error in scales [.., 2, 1], of ratios to it [.., 2, 64]."""
        square = self.op("Mul", ratios, ratios, name="quads/squares")
        bend = self.op("MatMul", square, _bends(), name="quads/bend")
        bent = self.op("Div", ratios, self.op("Add", bend, 1 / wire_points.SPREAD, name="quads/divisor"), name="bent")
        most = wire_points.REACH - 0.01
        index = self._cell(self.op("Clip", bent, -most, most, name="near"))
        table = self.constant("cell/numbers", wire_points.numbers_of_cells())
        numbers = self._graph.node("Gather", [table, index], f"{self._path}/numbers", axis=0)
        named = self.cast(numbers, TensorProto.INT32, "numbers/index")
        table = self.table_of_levels()
        level = self._graph.node("Gather", [table, named], f"{self._path}/levels/quads", axis=0)
        level = self.op("Reshape", level, self.shape("levels/flat", [0, 0, 0, 0, BLOCK]), name="levels/row")
        off = self.op("Sub", level, ratios, name="off")
        return numbers, self.sum("ReduceSum", self.op("Mul", off, off, name="off/squares"), "error")

    def _cell(self, near: str) -> str:
        """Where points, four values of the 64 each, are in the table of cells: int32 [.., 2, 16].

        All sums are products with matrices: reductions and choices that end in an axis of one take ten times as long.
        """
        whole = self.op("Round", near, name="cell/whole")
        apart = self.op("Abs", self.op("Sub", near, whole, name="cell/rest"), name="cell/apart")
        away = self.op("MatMul", apart, _of_quads(np.ones(QUAD)), name="cell/away")
        half = self.cast(self.op("Greater", away, 1.0, name="cell/half"), TensorProto.FLOAT, "cell/half/single")
        strides = _of_quads(wire_points.cell_strides()[:, 0])
        place = self.op("MatMul", whole, strides, name="cell/whole/place")
        lower = self.op("MatMul", self.op("Floor", near, name="cell/below"), strides, name="cell/half/place")
        more = float(wire_points.HALF_CELLS - wire_points.WHOLE_CELLS)
        further = self.op("Add", self.op("Sub", lower, place, name="cell/less"), more, name="cell/more")
        place = self.op("Add", place, self.op("Mul", half, further, name="cell/moved"), name="cell/from")
        place = self.op("Add", place, float(wire_points.WHOLE_CELLS), name="cell/place")
        index = self.cast(place, TensorProto.INT32, "cell/index")
        last = len(wire_points.numbers_of_cells()) - 1
        # Beside values that are not numbers any place will do that is in the table.
        for op, bound in (("Max", 0), ("Min", last)):
            limit = self.constant(f"cell/{op}/bound", np.array(bound, np.int32))
            index = self._graph.node(op, [index, limit], f"{self._path}/cell/{op}")
        return index

    def _nearer(self, octets: str, error: str, scale: str) -> str:
        """Of both candidates [.., 2, bytes] the one with less error."""
        size = self.op("Mul", self.op("Mul", error, scale, name="error/scale"), scale, name="error/values")
        halves = self.constant("halves", np.array([1, 1], np.int64))
        parts = []
        for name, one in (("octets", octets), ("error", size)):
            outputs = [f"{self._path}/{name}/first", f"{self._path}/{name}/second"]
            self._graph.node("Split", [one, halves], f"{self._path}/{name}/halves", outputs=outputs, axis=-2)
            parts.append(outputs)
        (first, second), (error, other) = parts
        return self.op("Where", self.op("Less", other, error, name="nearer/less"), second, first, name="nearer")

    def _behind_code(self, below: str, octets: str) -> str:
        """The code is in no sum: beside values that are not numbers it must be one."""
        code = self.op("Sub", float(NOT_FINITE), below, name="code")
        return self.joined([code, octets], "octets/numbers")

    def _scale(self, measure: str, bounds: Floats) -> tuple[str, str]:
        """Of how many codes the bound is above what is measured (of none where that is not a number); the scale."""
        is_below = self.op("Less", measure, bounds, name="below/each")
        counted = self.cast(is_below, TensorProto.FLOAT, "below/counted")
        below = self.sum("ReduceSum", counted, "below")
        return below, self.scale(below, scales()[::-1].copy())

    def _octets(self, numbers: str, steps: str, here: str) -> str:
        """What is behind the code."""
        upper = self.floor(numbers, 2.0**-16, "upper")
        lower = self.rest(numbers, 65536.0, upper, "lower")
        middle = self.floor(lower, 2.0**-8, "middle")
        low = self.rest(lower, 256.0, middle, "low")
        place = self.op("MatMul", here, _octets_of_places(), name="apart/octets")
        above = self.op("Add", self.op("MatMul", upper, _octets_of_digits(), name="upper/sums"), place, name="above")
        shifted = self.op("Add", steps, 128.0, name="apart/shifted")
        return self.joined([shifted, low, middle, above], "octets/behind")


class _Unpacker(_Codec):
    """Octets as floats [.., blocks, bytes of a block] to values [.., blocks, 64]."""

    def int8(self, numbers: str) -> str:
        """See `_Packer`."""
        code, octets = self._parts(numbers, {"code": 1, "shifted": BLOCK}, "octets/split")
        steps = self.op("Sub", octets, 128.0, name="steps")
        return self._turned(steps, self.scale(code, scales()))

    def int4(self, numbers: str) -> str:
        """See `_Packer`."""
        sizes = {"code": 1, "apart/shifted": 1, "lower": 2 * _QUADS, "upper": _UPPER_BYTES}
        code, shifted, lower, upper = self._parts(numbers, sizes, "octets/split")
        index = self.cast(upper, TensorProto.INT32, "upper/index")
        table = self.constant("upper/digits", _digits_of_bytes())
        digits = self._graph.node("Gather", [table, index], f"{self._path}/digits", axis=0)
        digits = self.op("Reshape", digits, self.shape("digits/flat", [0, 0, 0, -1]), name="digits/row")
        sums = self.op("MatMul", self.joined([lower, digits], "parts"), _numbers_of_parts(), name="sums")
        found, place = self._parts(sums, {"numbers": _QUADS, "apart/index": 1}, "sums/split")
        scale = self.scale(code, scales())
        step = self.op("Mul", scale, TOP_STEP, name="apart/step")
        top = self.op("Mul", self.op("Sub", shifted, 128.0, name="apart/steps"), step, name="apart/value")
        alone = self.op("Where", self.places(place), top, 0.0, name="apart/alone")
        return self.op("Add", self._turned(self._levels(found), scale), alone, name="values")

    def _levels(self, numbers: str) -> str:
        """What numbers stand for, in scales, [.., blocks, 64]."""
        index = self.cast(numbers, TensorProto.INT32, "numbers/index")
        table = self.table_of_levels()
        quads = self._graph.node("Gather", [table, index], f"{self._path}/quads", axis=0)
        return self.op("Reshape", quads, self.shape("levels/flat", [0, 0, 0, BLOCK]), name="levels")

    def _parts(self, x: str, sizes: dict[str, int], name: str) -> list[str]:
        outputs = [f"{self._path}/{part}" for part in sizes]
        lengths = self.constant(f"{name}/sizes", np.array(list(sizes.values()), np.int64))
        self._graph.node("Split", [x, lengths], f"{self._path}/{name}", outputs=outputs, axis=-1)
        return outputs

    def _turned(self, rotated: str, scale: str) -> str:
        """Rotated back; the matrix is its own inverse."""
        return self.op("Mul", self.op("MatMul", rotated, hadamard(), name="turned"), scale, name="scaled")


def scales() -> Floats:
    """The scale of each code; that of `NOT_FINITE` is not a number."""
    parts = np.exp2(np.arange(OCTAVE_CODES) / OCTAVE_CODES).astype(np.float32)
    codes = np.arange(NOT_FINITE) - UNIT_CODE
    found = np.ldexp(parts[codes % OCTAVE_CODES], codes // OCTAVE_CODES)
    return np.append(found, np.float32(np.nan)).astype(np.float32)


def hadamard() -> Floats:
    """Sylvester's matrix of order 64 over 8: orthogonal and symmetric, so its own inverse."""
    made = np.ones((1, 1), np.float32)
    while len(made) < BLOCK:
        made = np.block([[made, made], [made, -made]])
    return (made / np.float32(BLOCK**0.5)).astype(np.float32)


def _of_quads(weights: npt.NDArray[np.generic]) -> Floats:
    """What makes of 64 values the 16 sums of four neighbours, each times its weight."""
    return np.kron(np.eye(_QUADS), np.asarray(weights, np.float64)[:, None]).astype(np.float32)


def _bends() -> Floats:
    """What makes of 64 squares, beside each value, what its quad's sum adds to the divisor."""
    quad = np.full((QUAD, QUAD), wire_points.BEND / wire_points.SPREAD)
    return np.kron(np.eye(_QUADS), quad).astype(np.float32)


def _octets_of_places() -> Floats:
    """Of the value apart's place, one of 64, what its digits base 3 add to the upper bytes: they are the last there."""
    return np.array([_base_3(place, _UPPER_BYTES) for place in range(BLOCK)], np.float32) * np.float32(3**QUAD)


def _octets_of_digits() -> Floats:
    """What makes the upper bytes of the numbers' digits."""
    made = np.zeros((_QUADS, _UPPER_BYTES), np.float32)
    for quad in range(_QUADS):
        made[quad, quad // QUAD] = 3 ** (quad % QUAD)
    return made


def _digits_of_bytes() -> Floats:
    """Of each upper byte its five digits base 3; of those above 242 the ones that are left."""
    return np.array([_base_3(octet, _DIGITS) for octet in range(256)], np.float32)


def _numbers_of_parts() -> Floats:
    """What makes numbers and the place of low bytes, middle bytes and the upper bytes' digits."""
    made = np.zeros((2 * _QUADS + _UPPER_BYTES * _DIGITS, _QUADS + 1), np.float32)
    for quad in range(_QUADS):
        made[quad, quad], made[_QUADS + quad, quad] = 1, 2**8
        made[2 * _QUADS + quad // QUAD * _DIGITS + quad % QUAD, quad] = 2**16
    for octet in range(_UPPER_BYTES):
        made[2 * _QUADS + octet * _DIGITS + QUAD, _QUADS] = 3**octet
    return made


def _base_3(value: int, digits: int) -> list[int]:
    return [value // 3**digit % 3 for digit in range(digits)]
