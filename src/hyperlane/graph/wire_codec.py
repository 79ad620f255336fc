"""The operators that pack a hidden state for a link and unpack it, and their constants. The bytes: docs/wire-format.md.

A block's values are rotated by a Hadamard matrix, so that none stands out, and rounded: at int8 evenly, at int4 to 21
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
from hyperlane.wire.packing import BLOCK, BLOCK_BYTES, INT4_HELD, INT4_LEVELS, NOT_FINITE, packed_bytes

Floats = npt.NDArray[np.float32]

UNIT_CODE, OCTAVE_CODES = 102, 6
"""The scale of code c is 2 ** ((c − 102) / 6): from 2⁻¹⁷ to 2²⁵."""

TOP_STEP = 1.5
"""The value apart is a whole number of steps of so many scales, at most 127 of them."""

TOP_RATIO = 175.0
"""The scale is at least the value apart ÷ this, so that its steps are enough after the scale was rounded too."""

CURVE = (0.702, 0.207, 0.492)
"""Level t of −1 … 1 is t (a − b t²) / (1 − c t²) scales: nearly those of least error for a normal distribution."""

SPREAD, GAIN = 0.9, 1.08
"""Where levels begin: erf(value / spread) · gain is even there, nearly."""

_NUMBERS = -(-BLOCK // INT4_HELD)
"""Numbers of 22 bits in a block of int4, of which the last has 18: low bytes, middle bytes, nibbles, pairs of bits."""


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
        others = self.op("MatMul", self.op("Sub", values, alone, name="others"), hadamard(), name="others/rotated")
        largest = self.sum("ReduceMax", self.op("Abs", others, name="others/sizes"), "others/largest")
        below, scale = self._scale(self._measure(largest, top), scales()[:NOT_FINITE] * np.float32(2 ** (1 / 12)))
        step = self.op("Mul", scale, TOP_STEP, name="apart/step")
        steps = self.op("Round", self.op("Div", top, step, name="apart/ratio"), name="apart/steps")
        taken = self.op("Sub", values, self.op("Mul", steps, step, name="apart/taken"), name="apart/left")
        codes = self._codes(self.op("Where", here, taken, values, name="left"), scale)
        return self._behind_code(below, self._octets(codes, [steps, place]))

    def _measure(self, largest: str, top: str) -> str:
        """The larger of what the others and the value apart ask for; not a number where one of them is none."""
        least = self.op("Mul", self.op("Abs", top, name="apart/size"), 1 / TOP_RATIO, name="apart/least")
        is_less = self.op("Less", least, largest, name="apart/less")
        larger = self.op("Where", is_less, largest, least, name="larger")
        return self.op("Add", larger, self.op("Mul", largest, 0.0, name="others/nothing"), name="measure")

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
        rotated = self.op("MatMul", values, (hadamard() / SPREAD).astype(np.float32), name="rotated")
        curved = self.op("Erf", self.op("Div", rotated, scale, name="ratios"), name="curved")
        half = INT4_LEVELS / 2
        shifted = self.op("Add", self.op("Mul", curved, GAIN * half, name="wide"), half, name="shifted")
        whole = self.op("Floor", shifted, name="whole")
        return self.op("Clip", whole, 0.0, INT4_LEVELS - 1.0, name="codes")

    def _octets(self, codes: str, before: list[str]) -> str:
        numbers = self.op("MatMul", codes, _numbers_of_codes(), name="numbers")
        upper = self.floor(numbers, 2.0**-16, "upper")
        lower = self.rest(numbers, 65536.0, upper, "lower")
        middle = self.floor(lower, 2.0**-8, "middle")
        low = self.rest(lower, 256.0, middle, "low")
        pairs = self.floor(upper, 2.0**-4, "pairs")
        nibbles = self.rest(upper, 16.0, pairs, "nibbles")
        digits = self.joined([*before, low, middle, nibbles, pairs], "digits")
        matrix, shift = _octets_of_digits()
        return self.op("Add", self.op("MatMul", digits, matrix, name="octets/sums"), shift, name="octets/behind")


class _Unpacker(_Codec):
    """Octets as floats [.., blocks, bytes of a block] to values [.., blocks, 64]."""

    def int8(self, numbers: str) -> str:
        """See `_Packer`."""
        code, octets = self._parts(numbers, {"code": 1, "shifted": BLOCK}, "octets/split")
        steps = self.op("Sub", octets, 128.0, name="steps")
        return self._turned(steps, self.scale(code, scales()))

    def int4(self, numbers: str) -> str:
        """See `_Packer`."""
        code, shifted, _ = self._parts(
            numbers, {"code": 1, "apart/shifted": 1, "held": BLOCK_BYTES[Precision.INT4] - 2}, "octets/split"
        )
        digits = self._digits(numbers)
        place, _ = self._parts(digits, {"apart/index": 1, "upper": 2 * _NUMBERS - 1}, "digits/split")
        scale = self.scale(code, scales())
        step = self.op("Mul", scale, TOP_STEP, name="apart/step")
        top = self.op("Mul", self.op("Sub", shifted, 128.0, name="apart/steps"), step, name="apart/value")
        alone = self.op("Where", self.places(place), top, 0.0, name="apart/alone")
        levels = self._levels(self._codes(self.joined([numbers, digits], "octets/digits")))
        return self.op("Add", self._turned(levels, scale), alone, name="values")

    def _levels(self, codes: str) -> str:
        """What codes stand for, in scales."""
        half = (INT4_LEVELS - 1) / 2
        t = self.op("Sub", self.op("Mul", codes, 1 / half, name="levels/part"), 1.0, name="levels/t")
        square = self.op("Mul", t, t, name="levels/square")
        a, b, c = CURVE
        above = self.op("Sub", a, self.op("Mul", square, b, name="levels/above/less"), name="levels/above")
        below = self.op("Sub", 1.0, self.op("Mul", square, c, name="levels/below/less"), name="levels/below")
        return self.op("Div", self.op("Mul", t, above, name="levels/product"), below, name="levels")

    def _parts(self, x: str, sizes: dict[str, int], name: str) -> list[str]:
        outputs = [f"{self._path}/{part}" for part in sizes]
        lengths = self.constant(f"{name}/sizes", np.array(list(sizes.values()), np.int64))
        self._graph.node("Split", [x, lengths], f"{self._path}/{name}", outputs=outputs, axis=-1)
        return outputs

    def _turned(self, rotated: str, scale: str) -> str:
        """Rotated back; the matrix is its own inverse."""
        return self.op("Mul", self.op("MatMul", rotated, hadamard(), name="turned"), scale, name="scaled")

    def _digits(self, numbers: str) -> str:
        """Parts of octets: the place of the value apart, nibbles, pairs of bits."""
        picked, factors, bases = _digits_of_octets()
        source = self.op("MatMul", numbers, picked, name="digits/octets")
        above = self.floor(source, factors, "digits/above")
        return self.rest(above, bases, self.floor(above, np.reciprocal(bases), "digits/next"), "digits")

    def _codes(self, octets: str) -> str:
        """Of octets with their parts behind them. The half keeps products with reciprocals off whole numbers."""
        half = self.op("Add", self.op("MatMul", octets, _numbers_of_octets(), name="numbers"), 0.5, name="numbers/half")
        powers = np.array([float(INT4_LEVELS) ** -(place % INT4_HELD) for place in range(BLOCK)], np.float32)
        above = self.floor(half, powers, "codes/above")
        after = self.op("Add", above, 0.5, name="codes/half")
        return self.rest(above, float(INT4_LEVELS), self.floor(after, 1 / INT4_LEVELS, "codes/next"), "codes")


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


def _numbers_of_codes() -> Floats:
    """Of 64 codes the numbers that hold five each."""
    made = np.zeros((BLOCK, _NUMBERS), np.float32)
    for place in range(BLOCK):
        made[place, place // INT4_HELD] = INT4_LEVELS ** (place % INT4_HELD)
    return made


def _octets_of_digits() -> tuple[Floats, Floats]:
    """What makes octets, all but the first, of [steps of the value apart, its place, low, middle, nibbles, pairs]."""
    size = BLOCK_BYTES[Precision.INT4]
    made, shift = np.zeros((2 + 4 * _NUMBERS, size), np.float32), np.zeros(size, np.float32)
    made[0, 1] = made[1, 2] = 1
    shift[1] = 128
    for number in range(_NUMBERS):
        for part, (octet, factor) in enumerate(_places_of(number)):
            made[2 + part * _NUMBERS + number, octet] = factor
    return made[:, 1:], shift[1:]


def _digits_of_octets() -> tuple[Floats, Floats, Floats]:
    """Which octet each part is in, what moves it to the front, and how many values it has: place, nibbles, pairs."""
    count = 2 * _NUMBERS
    picked = np.zeros((BLOCK_BYTES[Precision.INT4], count), np.float32)
    factors, bases = np.ones(count, np.float32), np.repeat(np.array([16, 4], np.float32), _NUMBERS)
    picked[2, 0], bases = 1, np.concatenate([[np.float32(BLOCK)], bases])[:count]
    for number in range(_NUMBERS):
        for part, (octet, factor) in enumerate(_places_of(number)[2:]):
            at = 1 + part * _NUMBERS + number
            if at < count:
                picked[octet, at], factors[at] = 1, 1 / factor
    return picked, factors, bases


def _numbers_of_octets() -> Floats:
    """Of a block's octets with its parts behind them, the number that each value is in."""
    size = BLOCK_BYTES[Precision.INT4]
    made = np.zeros((size + 2 * _NUMBERS, BLOCK), np.float32)
    for place in range(BLOCK):
        number = place // INT4_HELD
        (low, _), (middle, _), *_ = _places_of(number)
        made[low, place], made[middle, place] = 1, 256
        made[size + 1 + number, place] = 2**16
        if number < _NUMBERS - 1:
            made[size + 1 + _NUMBERS + number, place] = 2**20
    return made


def _places_of(number: int) -> list[tuple[int, int]]:
    """In which octet each part of a number is, and what it is multiplied by there.

    The upper bits of the last number, of which there are two, are above the place of the value apart.
    """
    low, middle = 3, 3 + _NUMBERS
    nibbles, pairs = middle + _NUMBERS, middle + _NUMBERS + _NUMBERS // 2
    if number == _NUMBERS - 1:
        return [(low + number, 1), (middle + number, 1), (2, BLOCK), (2, 0)]
    return [
        (low + number, 1),
        (middle + number, 1),
        (nibbles + number // 2, 16 ** (number % 2)),
        (pairs + number // 4, 4 ** (number % 4)),
    ]
