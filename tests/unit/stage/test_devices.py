"""Which device a worker takes, and the ranges of slots that a device captures."""

import pytest

from hyperlane.errors import RuntimeMissing
from hyperlane.stage.hardware import Hardware
from hyperlane.stage.providers import choose_device
from hyperlane.stage.runs import bucket

GPU, CPU = ["onnxruntime-gpu 1.31.1"], ["onnxruntime 1.31.1"]


def test_auto_takes_a_card_that_the_runtime_can_use():
    device = choose_device("auto", GPU, count=lambda row: 1)
    assert (device.name, device.provider.name, device.index) == ("cuda", "cuda", 0)


def test_auto_says_why_it_is_not_the_better_one():
    without_runtime = choose_device("auto", CPU, count=lambda row: 1, beside=[], hardware=Hardware())
    assert without_runtime.name == "cpu"
    assert "install hyperlane[cuda]" in without_runtime.reason
    unseen = choose_device("auto", GPU, lambda row: int(row.name == "cpu"), hardware=Hardware(cuda=True))
    assert "check the driver" in unseen.reason


def test_a_device_is_named_by_its_index():
    assert choose_device("cuda:1", GPU, count=lambda row: 2).index == 1
    with pytest.raises(RuntimeMissing, match="2 such devices"):
        choose_device("cuda:2", GPU, count=lambda row: 2)
    with pytest.raises(RuntimeMissing, match="is no device"):
        choose_device("cuda:first", GPU, count=lambda row: 2)


@pytest.mark.parametrize(
    ("first", "size", "slots", "least", "expected"),
    [
        (3, 1, 8, 1, (3, 1)),
        (3, 1, 8, 4, (0, 4)),
        (5, 2, 8, 1, (4, 4)),
        (3, 2, 8, 1, (0, 8)),
        (4, 2, 6, 4, (4, 2)),
        (0, 6, 6, 1, (0, 6)),
    ],
)
def test_a_bucket_is_the_smallest_aligned_range_around_a_batch(first, size, slots, least, expected):
    assert bucket(first, size, slots, least) == expected
