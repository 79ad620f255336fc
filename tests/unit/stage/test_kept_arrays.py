"""Weights that were converted for a device are kept, and mapped the next time."""

from __future__ import annotations

import numpy as np
import pytest

from hyperlane.core import Epoch, HeadId, LayerRange, StageSpec
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage.loading import Assembly, _kept, units, usable
from hyperlane.stage.options import EngineOptions
from hyperlane.store.ready_store import ReadyStore
from hyperlane.testing.tiny_models import TinyModel, write_tiny_model


class Unread:
    """A source that must not be read any more."""

    def __init__(self, file):
        self.info, self.names = file.info, file.names

    def read(self, name):
        raise AssertionError(f"{name} was read again")


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "F16"])
def test_converted_arrays_are_mapped_the_second_time_and_the_same(kind, tmp_path):
    path = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(layers=2, type=kind, hidden=256, ffn=512))
    with GgufFile(path) as file:
        facts = read_facts(file)
        spec = StageSpec(facts, Epoch(HeadId(bytes(16)), 1), 0, 1, LayerRange(0, 2), 1, 64, 1, 64)
        order = Assembly(spec, file, usable(EngineOptions(device="cuda")), lambda report: None)
        again = Assembly(spec, Unread(file), order.options, order.progress)
        store = ReadyStore(tmp_path / "ready")
        for layout in units(spec):
            plain, first, second = order.read_typed(layout), _kept(store, order, layout), _kept(store, again, layout)
            for unit in (first, second):
                assert unit.forms == plain.forms
                assert unit.arrays.keys() == plain.arrays.keys()
                for name, array in plain.arrays.items():
                    assert unit.arrays[name].dtype == array.dtype
                    np.testing.assert_array_equal(unit.arrays[name], array)
