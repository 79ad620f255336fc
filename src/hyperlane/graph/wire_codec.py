"""The operators that pack a hidden state for a link and unpack it, and their constants. The bytes: docs/wire-format.md.

A block's values are rotated by a Hadamard matrix, so that none stands out, and rounded: at int8 evenly, at int4 to 20
levels that suit a normal distribution, after the block's largest value was taken out. Only operators whose result for
a block does not depend on the blocks beside it: no logarithm, whose vector and scalar code may differ in the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from hyperlane.core import Precision
from hyperlane.graph.builder import GraphBuilder
from hyperlane.wire.packing import BLOCK, BLOCK_BYTES, INT4_LEVELS, INT4_TRIPLES, NOT_FINITE, packed_bytes

Floats = npt.NDArray[np.float32]

SCALE_EXPONENT = 96
"""The scale of code c is 2 ** ((c − 96) / 4): from 2⁻²⁴ to 2³⁹ and a half."""

TOP_STEP = 4.0
"""The value apart is a whole number of steps of so many scales, at most 127 of them."""

TOP_RATIO = 460.0
"""The scale is at least the value apart ÷ this, so that its steps are enough after the scale was rounded too."""

LEVELS = (
    0.1037626, 0.3127914, 0.5264881, 0.7485333, 0.9836425, 1.2384672, 1.5234143, 1.8569773, 2.2787140, 2.9079607,
)  # fmt: skip
"""Positive levels of int4, in units of the root mean square: those of least error for a normal distribution."""

_HELD = INT4_TRIPLES + 1
"""Numbers of at most 13 bits in a block of int4: the triples, and the last value shifted to the upper bits."""

_ABOVE = 1.0 + 1e-6
"""Makes a reciprocal large enough for the floor of an exact multiple, and too small to reach the next one."""


def pack(graph: GraphBuilder, x: str, hidden: int, precision: Precision, name: str) -> str:
    """Add what packs x, float32 [batch, tokens, hidden]; returns `name`, uint8 [batch, tokens, token bytes]."""
    shape = graph.constant("packed/blocks", np.array([0, 0, hidden // BLOCK, BLOCK], np.int64))
    blocks = graph.node("Reshape", [x, shape], "packed/values")
    packer = _Packer(graph, "packed")
    numbers = packer.int8(blocks) if precision is Precision.INT8 else packer.int4(blocks)
    octets = graph.node("Cast", [numbers], "packed/octets", to=TensorProto.UINT8)
    flat = graph.constant("packed/flat", np.array([0, 0, packed_bytes(hidden, precision)], np.int64))
    return graph.node("Reshape", [octets, flat], name)


def unpack(graph: GraphBuilder, x: str, hidden: int, precision: Precision, name: str) -> str:
    """Add what unpacks x, uint8 [batch, tokens, token bytes]; returns `name`, float32 [batch, tokens, hidden]."""
    blocks, size = hidden // BLOCK, BLOCK_BYTES[precision]
    shape = graph.constant("unpacked/blocks", np.array([0, 0, blocks, size], np.int64))
    octets = graph.node("Reshape", [x, shape], "unpacked/octets")
    numbers = graph.node("Cast", [octets], "unpacked/numbers", to=TensorProto.FLOAT)
    unpacker = _Unpacker(graph, "unpacked")
    values = unpacker.int8(numbers) if precision is Precision.INT8 else unpacker.int4(numbers)
    flat = graph.constant("unpacked/flat", np.array([0, 0, hidden], np.int64))
    return graph.node("Reshape", [values, flat], name)


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

    def constant(self, name: str, value: npt.NDArray[np.generic]) -> str:
        return self._graph.constant(f"{self._path}/{name}", value)

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
        """Scale, the value apart and its place, then 64 levels."""
        place = self._graph.node("ArgMax", [self.op("Abs", values, name="sizes")], f"{self._path}/argmax", axis=-1)
        place = self.cast(place, TensorProto.FLOAT, "apart/index")
        here = self.places(place)
        alone = self.op("Where", here, values, 0.0, name="apart/alone")
        top = self.sum("ReduceSum", alone, "apart/value")
        square = self.sum("ReduceSumSquare", self.op("Sub", values, alone, name="others"), "others/square")
        least = self.op("Mul", top, BLOCK**0.5 / TOP_RATIO, name="apart/least")
        square = self.op("Add", square, self.op("Mul", least, least, name="apart/square"), name="square")
        bounds = np.square(scales()[:NOT_FINITE].astype(np.float64) * 2**0.125) * BLOCK
        below, scale = self._scale(square, bounds.astype(np.float32))
        step = self.op("Mul", scale, TOP_STEP, name="apart/step")
        steps = self.op("Round", self.op("Div", top, step, name="apart/ratio"), name="apart/steps")
        taken = self.op("Sub", values, self.op("Mul", steps, step, name="apart/taken"), name="apart/left")
        codes = self._codes(self.op("Where", here, taken, values, name="left"), scale)
        return self._behind_code(below, self._octets(codes, [steps, place]))

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

    def _codes(self, values: str, scale: str) -> str:
        """The number of each value's level. An error function spaces the bounds of levels as they should be."""
        rotated = self.op("MatMul", values, (hadamard() / 2.4).astype(np.float32), name="rotated")
        curved = self.op("Erf", self.op("Div", rotated, scale, name="ratios"), name="curved")
        half = INT4_LEVELS / 2
        shifted = self.op("Add", self.op("Mul", curved, 1.03 * half, name="wide"), half, name="shifted")
        whole = self.op("Floor", shifted, name="whole")
        return self.op("Clip", whole, 0.0, INT4_LEVELS - 1.0, name="codes")

    def _octets(self, codes: str, before: list[str]) -> str:
        triples = self.op("MatMul", codes, _triples(), name="triples")
        high = self.floor(triples, 1 / 256, "high")
        low = self.rest(triples, 256.0, high, "low")
        bits = self.floor(high, 1 / 16, "bits")
        nibbles = self.rest(high, 16.0, bits, "nibbles")
        digits = self.joined([*before, low, nibbles, bits], "digits")
        matrix, shift = _octets_of_digits()
        return self.op("Add", self.op("MatMul", digits, matrix, name="octets/sums"), shift, name="octets/behind")


class _Unpacker(_Codec):
    """Octets as floats [.., blocks, bytes of a block] to values [.., blocks, 64]."""

    def int8(self, numbers: str) -> str:
        """See `_Packer`."""
        code, octets = self._parts(numbers, {"code": 1, "shifted": BLOCK})
        steps = self.op("Sub", octets, 128.0, name="steps")
        return self._turned(steps, self.scale(code, scales()))

    def int4(self, numbers: str) -> str:
        """See `_Packer`."""
        code, shifted, place, _ = self._parts(
            numbers, {"code": 1, "apart/shifted": 1, "apart/index": 1, "held": BLOCK_BYTES[Precision.INT4] - 3}
        )
        scale = self.scale(code, scales())
        positive = np.array(LEVELS, np.float32)
        index = self.cast(self._codes(numbers), TensorProto.INT32, "levels/index")
        table = self.constant("levels/table", np.concatenate([-positive[::-1], positive]))
        levels = self._graph.node("Gather", [table, index], f"{self._path}/levels", axis=0)
        step = self.op("Mul", scale, TOP_STEP, name="apart/step")
        top = self.op("Mul", self.op("Sub", shifted, 128.0, name="apart/steps"), step, name="apart/value")
        alone = self.op("Where", self.places(place), top, 0.0, name="apart/alone")
        return self.op("Add", self._turned(levels, scale), alone, name="values")

    def _parts(self, numbers: str, sizes: dict[str, int]) -> list[str]:
        outputs = [f"{self._path}/{name}" for name in sizes]
        lengths = self.constant("parts", np.array(list(sizes.values()), np.int64))
        self._graph.node("Split", [numbers, lengths], f"{self._path}/split", outputs=outputs, axis=-1)
        return outputs

    def _turned(self, rotated: str, scale: str) -> str:
        """Rotated back; the matrix is its own inverse."""
        return self.op("Mul", self.op("MatMul", rotated, hadamard(), name="turned"), scale, name="scaled")

    def _codes(self, numbers: str) -> str:
        picked, factors, bases = _digits_of_octets()
        source = self.op("MatMul", numbers, picked, name="digits/octets")
        above = self.floor(source, factors, "digits/above")
        digits = self.rest(above, bases, self.floor(above, np.reciprocal(bases), "digits/next"), "digits")
        both = self.joined([numbers, digits], "octets/digits")
        triples = self.op("MatMul", both, _triples_of_digits(), name="triples")
        powers = np.array([20.0 ** -(place % 3) * _ABOVE for place in range(BLOCK)], np.float32)
        powers[0::3] = 1.0
        above = self.floor(triples, powers, "codes/above")
        return self.rest(above, 20.0, self.floor(above, _ABOVE / 20, "codes/next"), "codes")


def scales() -> Floats:
    """The scale of each code; that of `NOT_FINITE` is not a number."""
    quarter = np.exp2(np.arange(4) / 4).astype(np.float32)
    codes = np.arange(NOT_FINITE)
    found = np.ldexp(quarter[codes % 4], (codes - SCALE_EXPONENT) // 4)
    return np.append(found, np.float32(np.nan)).astype(np.float32)


def hadamard() -> Floats:
    """Sylvester's matrix of order 64 over 8: orthogonal and symmetric, so its own inverse."""
    made = np.ones((1, 1), np.float32)
    while len(made) < BLOCK:
        made = np.block([[made, made], [made, -made]])
    return (made / np.float32(BLOCK**0.5)).astype(np.float32)


def _triples() -> Floats:
    """Of 64 codes the numbers that are held; the last code lies in the upper bits of its own."""
    made = np.zeros((BLOCK, _HELD), np.float32)
    for place in range(BLOCK - 1):
        made[place, place // 3] = INT4_LEVELS ** (place % 3)
    made[BLOCK - 1, INT4_TRIPLES] = 256
    return made


def _octets_of_digits() -> tuple[Floats, Floats]:
    """What makes octets, all but the first, of [steps of the value apart, its place, low bytes, nibbles, bits]."""
    size = BLOCK_BYTES[Precision.INT4]
    made, shift = np.zeros((2 + 3 * _HELD, size), np.float32), np.zeros(size, np.float32)
    made[0, 1] = made[1, 2] = 1
    shift[1] = 128
    for number in range(_HELD):
        if number < INT4_TRIPLES:
            made[2 + number, 3 + number] = 1
        nibble, bit = _places_of(number)
        made[2 + _HELD + number, nibble] = 16 ** (number % 2)
        made[2 + 2 * _HELD + number, bit] = 2 ** (number % 8)
    return made[:, 1:], shift[1:]


def _digits_of_octets() -> tuple[Floats, Floats, Floats]:
    """Which octet each nibble and each bit is in, what moves it to the front, and how many values it has."""
    picked = np.zeros((BLOCK_BYTES[Precision.INT4], 2 * _HELD), np.float32)
    factors, bases = np.ones(2 * _HELD, np.float32), np.repeat(np.array([16, 2], np.float32), _HELD)
    for number in range(_HELD):
        nibble, bit = _places_of(number)
        picked[nibble, number] = picked[bit, _HELD + number] = 1
        factors[number], factors[_HELD + number] = 16.0 ** -(number % 2), 2.0 ** -(number % 8)
    return picked, factors, bases


def _triples_of_digits() -> Floats:
    """Of a block's octets with its nibbles and bits behind them, the number that each value is in."""
    size = BLOCK_BYTES[Precision.INT4]
    made = np.zeros((size + 2 * _HELD, BLOCK), np.float32)
    for place in range(BLOCK):
        number = place // 3
        held = 1 if number == INT4_TRIPLES else 256
        if number < INT4_TRIPLES:
            made[3 + number, place] = 1
        made[size + number, place] = held
        made[size + _HELD + number, place] = 16 * held
    return made


def _places_of(number: int) -> tuple[int, int]:
    """In which octets the nibble and the bit of a number are."""
    nibbles = 3 + INT4_TRIPLES
    return nibbles + number // 2, nibbles + _HELD // 2 + number // 8
