"""Gate and up held as one matrix, used as two."""

from __future__ import annotations

import numpy as np

from hyperlane.graph.forms import MatrixForm, Offsets
from hyperlane.stage.halves import gates_apart

PATH = "layer.0/ffn/gate_up"
FORM = MatrixForm(256, 64, 4, 32)


def arrays(rows=256, **more):
    random = np.random.default_rng(0)
    return {
        f"{PATH}/packed": random.integers(0, 256, (rows, 2, 16)).astype(np.uint8),
        f"{PATH}/scales": random.uniform(0, 1, (rows, 2)).astype(np.float16),
        **more,
    }


def test_both_halves_are_the_memory_of_the_whole():
    whole = arrays()
    cut, forms = gates_apart(whole, {PATH: (FORM,)})
    assert forms[PATH] == (MatrixForm(128, 64, 4, 32),) * 2
    for name in ("packed", "scales"):
        gate, up = cut[f"{PATH}/{name}"], cut[f"{PATH}.1/{name}"]
        np.testing.assert_array_equal(np.concatenate([gate, up]), whole[f"{PATH}/{name}"])
        assert up.ctypes.data == whole[f"{PATH}/{name}"].ctypes.data + gate.nbytes


def test_other_matrices_and_those_of_several_parts_stay_whole():
    other = {"layer.0/attn/qkv": (FORM,), PATH: (FORM, FORM)}
    whole = arrays()
    cut, forms = gates_apart(whole, other)
    assert forms == other
    assert all(cut[name] is array for name, array in whole.items())


def test_halves_that_would_begin_at_an_odd_address_stay_together():
    cut, forms = gates_apart(arrays(rows=6), {PATH: (MatrixForm(6, 64, 4, 32),)})
    assert forms == {PATH: (MatrixForm(6, 64, 4, 32),)}
    assert f"{PATH}.1/packed" not in cut


def test_offsets_that_are_a_matrix_of_their_own_keep_the_whole():
    form = MatrixForm(256, 64, 4, 32, offsets=Offsets.MATMUL)
    _, forms = gates_apart(arrays(), {PATH: (form,)})
    assert forms == {PATH: (form,)}
