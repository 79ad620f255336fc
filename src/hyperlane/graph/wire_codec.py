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

TOP_RATIO = 55.0
"""The scale is at least the value apart ÷ this, so that 127 half scales are enough at the smaller scale tried too."""

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
    packer = _Packer(graph, "packed")
    if precision is Precision.INT8:
        numbers = packer.int8(packer.blocks(x, gains, [hidden // BLOCK, BLOCK]))
    else:
        doubled = 2 * (np.ones(hidden, np.float32) if gains is None else gains)
        numbers = packer.int4(packer.blocks(x, doubled, [hidden // BLOCK, 1, BLOCK]))
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
    unpacker = _Unpacker(graph, "unpacked")
    values = unpacker.int8(octets) if precision is Precision.INT8 else unpacker.int4(octets)
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

    def parts(self, x: str, sizes: dict[str, int], name: str, axis: int = -1) -> list[str]:
        outputs = [f"{self._path}/{part}" for part in sizes]
        lengths = self.constant(f"{name}/sizes", np.array(list(sizes.values()), np.int64))
        self._graph.node("Split", [x, lengths], f"{self._path}/{name}", outputs=outputs, axis=axis)
        return outputs

    def reshaped(self, x: str, sizes: Sequence[int], name: str) -> str:
        shape = self.constant(f"{name}/shape", np.array(sizes, np.int64))
        return self._graph.node("Reshape", [x, shape], f"{self._path}/{name}")

    def looked_up(self, table: npt.NDArray[np.generic], index: str, name: str) -> str:
        """Rows of a table by their numbers, int32 or int64."""
        return self._graph.node(
            "Gather", [self.constant(f"{name}/table", table), index], f"{self._path}/{name}", axis=0
        )

    def constant(self, name: str, value: npt.NDArray[np.generic]) -> str:
        return self._graph.constant(f"{self._path}/{name}", value)

    def levels(self, numbers: str) -> str:
        """What points stand for, in scales, [.., 16, 4]; one table for both ends of a stage."""
        table = self._graph.constant("wire/levels", wire_points.levels())
        return self._graph.node("Gather", [table, numbers], f"{self._path}/quads", axis=0)

    def over(self, op: str, x: str, name: str, axes: Sequence[int] = (-1,), *, keep: bool = True) -> str:
        """A reduction."""
        along = self.constant(f"{name}/axes", np.array(axes, np.int64))
        return self._graph.node(op, [x, along], f"{self._path}/{name}", keepdims=int(keep))


class _Packer(_Codec):
    """Values in blocks to octets as floats."""

    def blocks(self, x: str, gains: Floats | None, sizes: Sequence[int]) -> str:
        """X times gains, [.., *sizes]."""
        weighed = x if gains is None else self.op("Mul", x, gains, name="weighed")
        return self.reshaped(weighed, [0, 0, *sizes], "values")

    def int8(self, values: str) -> str:
        """Scale, then 64 steps of it; values [.., blocks, 64]."""
        rotated = self.op("MatMul", values, hadamard(), name="rotated")
        largest = self.over("ReduceMax", self.op("Abs", rotated, name="sizes"), "largest")
        below = self._below(largest, np.float32(127.49) * scales()[:NOT_FINITE], [-1])
        code, scale = (self.looked_up(table[:, None], below, name) for name, table in _by_codes_above().items())
        steps = self.op("Round", self.op("Div", rotated, scale, name="ratios"), name="steps")
        # The code is in no sum: beside values that are not numbers it must be one.
        return self.joined([code, self.op("Add", steps, 128.0, name="shifted")], "octets/numbers")

    def int4(self, doubled: str) -> str:
        """Scale, the value apart and its place, then 16 points: by two scales, and what comes nearer to the values.

        `doubled`: twice the values, [.., blocks, 1, 64]. The value apart is a whole number of half scales, so halved
        rows of the Hadamard matrix take it out of what was rotated. Behind the one, two candidates have their place.
        """
        rotated = self.op("MatMul", doubled, _half_hadamard(), name="rotated")
        sizes = self.op("Abs", doubled, name="sizes")
        place = self._graph.node("ArgMax", [sizes], f"{self._path}/apart/place", axis=-1, keepdims=0)
        last = self.constant("last", np.array([-1], np.int64))
        index = self._graph.node("Unsqueeze", [place, last], f"{self._path}/apart/index")
        top = self._graph.node("GatherElements", [doubled, index], f"{self._path}/apart/doubled", axis=-1)
        row = self.looked_up(_half_hadamard(), place, "apart/row")
        others = self.op("Sub", rotated, self.op("Mul", row, top, name="apart/rotated"), name="others")
        codes, scale = self._two_scales(self._measure(others, top))
        steps = self.op("Round", self.op("Div", top, scale, name="apart/ratio"), name="apart/steps")
        taken = self.op("Mul", row, steps, name="apart/taken")
        ratios = self.op("Sub", self.op("Div", rotated, scale, name="rotated/ratios"), taken, name="ratios")
        numbers = self._numbers(ratios)
        error = self._error(ratios, numbers, scale)
        return self._octets(self._nearer(self.joined([codes, steps, numbers], "candidates"), error), place)

    def _measure(self, others: str, top: str) -> str:
        """Squared: the larger of what the quads of the others and the value apart ask for; not a number beside one."""
        square = self.op("Mul", others, others, name="others/squares")
        sizes = self.op("MatMul", square, _of_quads(np.ones(QUAD)), name="others/sizes")
        largest = self.over("ReduceMax", sizes, "others/largest")
        part = self.op("Mul", top, 1 / (2 * TOP_RATIO), name="apart/part")
        larger = self.op("Max", largest, self.op("Mul", part, part, name="apart/least"), name="larger")
        return self.op("Add", larger, self.op("Mul", largest, 0.0, name="others/nothing"), name="measure")

    def _two_scales(self, measure: str) -> tuple[str, str]:
        """Codes and scales to try, [.., blocks, 2, 1] each."""
        bounds = np.square(scales()[:NOT_FINITE].astype(np.float64) * ROUNDED_UP).astype(np.float32)
        below = self._below(measure, bounds, [-2, -1])
        codes = _codes_above()
        both = np.stack([codes, np.maximum(codes - 1, 0)], -1)[..., None]
        return self.looked_up(both.astype(np.float32), below, "codes"), self.looked_up(scales()[both], below, "scale")

    def _numbers(self, ratios: str) -> str:
        """Numbers of the points, as floats [.., 2, 16], of ratios to the scale [.., 2, 64]."""
        square = self.op("Mul", ratios, ratios, name="quads/squares")
        bend = self.op("MatMul", square, _bends(), name="quads/bend")
        bent = self.op("Div", ratios, self.op("Add", bend, 1 / wire_points.SPREAD, name="quads/divisor"), name="bent")
        most = wire_points.REACH - 0.01
        index = self._cell(self.op("Clip", bent, -most, most, name="near"))
        # Rolled, as places are counted from the cell in the middle, and those below it from the end.
        return self.looked_up(np.roll(wire_points.numbers_of_cells(), -wire_points.WHOLE_CELLS), index, "numbers")

    def _cell(self, near: str) -> str:
        """Where points, four values of the 64 each, are in the table of cells: int32 [.., 2, 16].

        All sums are products with matrices: reductions that end in an axis of one take ten times as long.
        """
        strides = _of_quads(wire_points.cell_strides()[:, 0])
        whole = self.op("Round", near, name="cell/whole")
        apart = self.op("Abs", self.op("Sub", near, whole, name="cell/rest"), name="cell/apart")
        away = self.op("MatMul", apart, _of_quads(np.ones(QUAD)), name="cell/away")
        is_half = self.op("Greater", away, 1.0, name="cell/half")
        place = self.op("MatMul", whole, strides, name="cell/whole/place")
        lower = self.op("MatMul", self.op("Floor", near, name="cell/below"), strides, name="cell/lower")
        more = float(wire_points.HALF_CELLS - wire_points.WHOLE_CELLS)
        place = self.op("Where", is_half, self.op("Add", lower, more, name="cell/half/place"), place, name="cell/place")
        index = self.cast(place, TensorProto.INT32, "cell/index")
        count = len(wire_points.numbers_of_cells())
        # Beside values that are not numbers any place will do that is in the table.
        for op, bound in (("Max", -count), ("Min", count - 1)):
            limit = self.constant(f"cell/{op}/bound", np.array(bound, np.int32))
            index = self._graph.node(op, [index, limit], f"{self._path}/cell/{op}")
        return index

    def _error(self, ratios: str, numbers: str, scale: str) -> str:
        """Squared, of both candidates, [.., 2, 1]."""
        level = self.levels(self.cast(numbers, TensorProto.INT32, "numbers/index"))
        off = self.op("Sub", self.reshaped(level, [0, 0, 0, 0, BLOCK], "levels"), ratios, name="off")
        return self.over("ReduceSumSquare", self.op("Mul", off, scale, name="off/values"), "error")

    def _nearer(self, candidates: str, error: str) -> str:
        """Of both candidates [.., 2, …] the one with less error, [.., 1, …]."""
        halves = {"first": 1, "second": 1}
        first, second = self.parts(candidates, halves, "candidates/split", axis=-2)
        one, other = self.parts(error, {f"error/{name}": 1 for name in halves}, "error/split", axis=-2)
        return self.op("Where", self.op("Less", other, one, name="nearer/less"), second, first, name="nearer")

    def _octets(self, chosen: str, place: str) -> str:
        """The bytes of code, steps and numbers; all but the code's are sums of whole numbers below 2¹⁸."""
        sizes = {"code": 1, "steps": 1, "numbers/chosen": _QUADS}
        code, steps, numbers = self.parts(chosen, sizes, "chosen/split")
        middle = self._bytes_above(numbers, "middle")
        upper = self._bytes_above(middle, "upper")
        tail = self.looked_up(_tails(), place, "apart/tail")
        made = self.op(
            "MatMul", self.joined([steps, numbers, middle, upper, tail], "sums"), _octets_of(), name="behind"
        )
        # The code is in no sum: beside values that are not numbers it must be one.
        return self.joined([code, made], "octets/numbers")

    def _bytes_above(self, numbers: str, name: str) -> str:
        """Without the lowest byte."""
        return self.op("Floor", self.op("Mul", numbers, 2.0**-8, name=f"{name}/product"), name=name)

    def _below(self, measure: str, bounds: Floats, axes: Sequence[int]) -> str:
        """How many bounds are above what is measured, int32; none where that is not a number.

        Counted as floats: sums of whole numbers take several times as long.
        """
        is_below = self.op("Less", measure, bounds, name="below/each")
        ones = self.cast(is_below, TensorProto.FLOAT, "below/ones")
        return self.cast(self.over("ReduceSum", ones, "below", axes, keep=False), TensorProto.INT32, "below/index")


class _Unpacker(_Codec):
    """Octets [.., blocks, bytes of a block] to values [.., blocks, 64]."""

    def int8(self, octets: str) -> str:
        """See `_Packer`."""
        numbers = self.cast(octets, TensorProto.FLOAT, "octets/single")
        code, shifted = self.parts(numbers, {"code": 1, "shifted": BLOCK}, "octets/split")
        steps = self.op("Sub", shifted, 128.0, name="steps")
        return self._turned(steps, self.cast(code, TensorProto.INT32, "code/index"))

    def int4(self, octets: str) -> str:
        """See `_Packer`."""
        numbers = self.cast(octets, TensorProto.INT32, "octets/whole")
        sizes = {"code": 1, "apart/shifted": 1, "low": _QUADS, "middle": _QUADS, "upper": _UPPER_BYTES}
        code, shifted, low, middle, upper = self.parts(numbers, sizes, "octets/split")
        digits = self.looked_up(_digits_of_bytes()[:, :QUAD] << 16, upper, "upper/digits")
        above = self._sum(self._times(middle, [1 << 8], "middle/above"), low, "lower")
        found = self._sum(above, self.reshaped(digits, [0, 0, 0, _QUADS], "upper/above"), "numbers")
        place = self.over("ReduceSum", self._parts_of_place(upper), "apart/place", keep=False)
        row = self.looked_up(_rows_apart(), self.cast(place, TensorProto.INT32, "apart/index"), "apart/row")
        steps = self.looked_up(np.arange(-128, 128, dtype=np.float32), shifted, "apart/steps")
        quads = self.reshaped(self.levels(found), [0, 0, 0, BLOCK], "levels")
        return self._turned(self.op("Add", quads, self.op("Mul", row, steps, name="apart"), name="rotated"), code)

    def _parts_of_place(self, upper: str) -> str:
        digits = self.looked_up(_digits_of_bytes()[:, QUAD].astype(np.float32), upper, "apart/digits")
        powers = np.array([3**octet for octet in range(_UPPER_BYTES)], np.float32)
        return self.op("Mul", digits, powers, name="apart/parts")

    def _times(self, x: str, factors: Sequence[int], name: str) -> str:
        whole = self.constant(f"{name}/factors", np.array(factors, np.int32))
        return self._graph.node("Mul", [x, whole], f"{self._path}/{name}")

    def _sum(self, x: str, y: str, name: str) -> str:
        return self._graph.node("Add", [x, y], f"{self._path}/{name}")

    def _turned(self, rotated: str, code: str) -> str:
        """Rotated back, and times the code's scale; the matrix is its own inverse."""
        turned = self.op("MatMul", rotated, hadamard(), name="turned")
        return self.op("Mul", turned, self.looked_up(scales(), code, "scale"), name="scaled")


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


def _half_hadamard() -> Floats:
    return hadamard() * np.float32(0.5)


def _of_quads(weights: npt.NDArray[np.generic]) -> Floats:
    """What makes of 64 values the 16 sums of four neighbours, each times its weight."""
    return np.kron(np.eye(_QUADS), np.asarray(weights, np.float64)[:, None]).astype(np.float32)


def _bends() -> Floats:
    """What makes of 64 squares, beside each value, what its quad's sum adds to the divisor."""
    quad = np.full((QUAD, QUAD), wire_points.BEND / wire_points.SPREAD)
    return np.kron(np.eye(_QUADS), quad).astype(np.float32)


def _codes_above() -> npt.NDArray[np.int64]:
    """The code whose scale is the least of so many, int64 [256]; with none, the one of what is not finite."""
    return NOT_FINITE - np.arange(NOT_FINITE + 1)


def _by_codes_above() -> dict[str, Floats]:
    """Codes and their scales by how many scales are as large or larger."""
    return {"code": _codes_above().astype(np.float32), "scale": scales()[_codes_above()]}


def _octets_of() -> Floats:
    """What makes bytes (steps, low, middle, upper) of steps, numbers, these without one byte and two, and `_tails`."""
    made = np.zeros((1 + 3 * _QUADS + _UPPER_BYTES + 1, 1 + 2 * _QUADS + _UPPER_BYTES), np.float32)
    low, middle, upper = 1, 1 + _QUADS, 1 + 2 * _QUADS
    made[0, 0] = made[-1, 0] = 1
    for quad in range(_QUADS):
        made[1 + quad, low + quad] = made[1 + _QUADS + quad, middle + quad] = 1
        made[1 + _QUADS + quad, low + quad] = made[1 + 2 * _QUADS + quad, middle + quad] = -(2**8)
        made[1 + 2 * _QUADS + quad, upper + quad // QUAD] = 3 ** (quad % QUAD)
    made[-1 - _UPPER_BYTES : -1, upper:] = np.eye(_UPPER_BYTES)
    return made


def _tails() -> Floats:
    """What a place of the value apart adds to upper bytes, whose last digits it is, and what is added to its steps."""
    digits = np.array([_base_3(place, _UPPER_BYTES) for place in range(BLOCK)]) * 3**QUAD
    return np.concatenate([digits, np.full((BLOCK, 1), 128)], axis=1).astype(np.float32)


def _rows_apart() -> Floats:
    """Of each place a row of the Hadamard matrix, halved; nothing for places that no block has."""
    return np.concatenate([_half_hadamard(), np.zeros((3**_UPPER_BYTES - BLOCK, BLOCK), np.float32)])


def _digits_of_bytes() -> npt.NDArray[np.int32]:
    """Of each upper byte its five digits base 3; of those above 242 the ones that are left."""
    return np.array([_base_3(octet, _DIGITS) for octet in range(256)], np.int32)


def _base_3(value: int, digits: int) -> list[int]:
    return [value // 3**digit % 3 for digit in range(digits)]
