"""Packing and unpacking on ONNX Runtime: golden bytes, a plain reading of the format, tokens alone and together."""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

from hyperlane.core import Precision
from hyperlane.graph import wire_codec
from hyperlane.graph.builder import GraphBuilder
from hyperlane.testing.packed import GOLDEN_BLOCKS, GOLDEN_VALUES, unpack_block, unpack_token
from hyperlane.wire.packing import BLOCK_BYTES, NOT_FINITE

HIDDEN = 192
PACKED = (Precision.INT8, Precision.INT4)


@functools.cache
def session(packs: bool, hidden: int, precision: Precision) -> ort.InferenceSession:
    graph = GraphBuilder("codec")
    if packs:
        x = graph.input("x", TensorProto.FLOAT, ["batch", "tokens", hidden])
        graph.output(wire_codec.pack(graph, x, hidden, precision, "y"), TensorProto.UINT8, ["batch", "tokens", "n"])
    else:
        x = graph.input("x", TensorProto.UINT8, ["batch", "tokens", "n"])
        graph.output(
            wire_codec.unpack(graph, x, hidden, precision, "y"), TensorProto.FLOAT, ["batch", "tokens", hidden]
        )
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 2
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(graph.model([]), settings, providers=["CPUExecutionProvider"])


def pack(values: np.ndarray, precision: Precision) -> np.ndarray:
    """float32 [batch, tokens, hidden] to uint8 [batch, tokens, token bytes]."""
    return session(True, values.shape[-1], precision).run(None, {"x": values})[0]


def unpack(octets: np.ndarray, precision: Precision) -> np.ndarray:
    hidden = octets.shape[-1] // BLOCK_BYTES[precision] * 64
    return session(False, hidden, precision).run(None, {"x": octets})[0]


def activations(tokens: int, hidden: int = HIDDEN, seed: int = 0) -> np.ndarray:
    """Like a residual stream: a few channels are 100 times as large as the others."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((1, tokens, hidden)) * rng.uniform(0.3, 3.0, hidden)
    values[..., 5] += 300.0
    values[..., 70:73] *= 40.0
    return values.astype(np.float32)


@pytest.mark.parametrize("precision", PACKED)
def test_golden_bytes(precision):
    values = np.zeros((1, 1, 64), np.float32)
    values[0, 0, : len(GOLDEN_VALUES)] = GOLDEN_VALUES
    assert pack(values, precision).tobytes().hex() == GOLDEN_BLOCKS[precision]


@pytest.mark.parametrize("precision", PACKED)
def test_a_graph_unpacks_as_the_format_is_written(precision):
    octets = pack(activations(3), precision)
    plain = np.stack([unpack_token(token.tobytes(), precision) for token in octets[0]])
    np.testing.assert_allclose(unpack(octets, precision)[0], plain, rtol=0, atol=1e-6 * np.abs(plain).max())


@pytest.mark.parametrize("precision", PACKED)
def test_any_bytes_are_unpacked_as_the_format_is_written(precision):
    """What no graph would write does no harm."""
    rng = np.random.default_rng(1)
    octets = rng.integers(0, 256, (1, 64, BLOCK_BYTES[precision]), np.uint8)
    octets[..., 0] = rng.integers(80, 130, (1, 64))
    found = unpack(octets, precision)[0]
    for token, data in zip(found, octets[0], strict=True):
        plain = unpack_block(data.tobytes(), precision)
        np.testing.assert_allclose(token, plain, rtol=0, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize(("precision", "tolerance"), [(Precision.INT8, 0.01), (Precision.INT4, 0.14)])
def test_a_block_comes_back_within_the_stated_part_of_its_norm(precision, tolerance):
    """At int4 of the norm of all but the block's largest value."""
    values = activations(200, seed=2)
    back = unpack(pack(values, precision), precision)
    blocks, error = values.reshape(-1, 64), (back - values).reshape(-1, 64)
    if precision is Precision.INT4:
        blocks = np.sort(np.abs(blocks), axis=-1)[:, :-1]
    share = np.linalg.norm(error, axis=-1) / np.linalg.norm(blocks, axis=-1)
    assert share.max() <= tolerance
    assert share.mean() <= tolerance / 2


@pytest.mark.parametrize("precision", PACKED)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3, 1e5])
def test_scales_cover_small_and_large_streams(precision, size):
    values = activations(4) * np.float32(size)
    back = unpack(pack(values, precision), precision)
    assert np.linalg.norm(back - values) < 0.02 * np.linalg.norm(values)


@pytest.mark.parametrize("precision", PACKED)
def test_one_huge_value_leaves_the_others_alone(precision):
    values = activations(1)
    values[0, 0, 5] = 1e6
    back = unpack(pack(values, precision), precision)
    assert abs(back[0, 0, 5] - 1e6) < 0.02 * 1e6
    assert np.isfinite(back).all()


@pytest.mark.parametrize("precision", PACKED)
@pytest.mark.parametrize("hidden", [64, 192, 576, 640])
def test_a_token_is_packed_the_same_whatever_is_beside_it(precision, hidden):
    values = activations(130, hidden)
    together = pack(values, precision)
    values_back = unpack(together, precision)
    for first, count in ((0, 1), (7, 1), (129, 1), (3, 2), (5, 3), (64, 7), (1, 64), (9, 121)):
        part = slice(first, first + count)
        np.testing.assert_array_equal(pack(values[:, part], precision), together[:, part])
        as_batch = np.ascontiguousarray(values[0, part, None])
        np.testing.assert_array_equal(pack(as_batch, precision)[:, 0], together[0, part])
        np.testing.assert_array_equal(unpack(together[:, part].copy(), precision), values_back[:, part])


@pytest.mark.parametrize("precision", PACKED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e25])
def test_a_value_that_is_not_finite_is_marked_in_its_block(precision, value):
    values = activations(4)
    values[0, 2, 100] = value
    codes = pack(values, precision)[0, :, :: BLOCK_BYTES[precision]]
    assert np.argwhere(codes == NOT_FINITE).tolist() == [[2, 1]]
    assert np.isnan(unpack(pack(values, precision), precision)).any()


@pytest.mark.parametrize("precision", PACKED)
def test_memory_that_was_never_written_is_a_finite_token(precision):
    """Slots that only pad a batch have it."""
    back = unpack(np.zeros((1, 1, 3 * BLOCK_BYTES[precision]), np.uint8), precision)
    assert np.abs(back).max() < 0.01
