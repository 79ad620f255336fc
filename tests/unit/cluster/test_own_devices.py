"""Which devices the head's own workers get, and how many threads."""

from __future__ import annotations

import pytest

from hyperlane.cluster.devices.own import own_devices, own_threads
from hyperlane.config import ServeConfig
from hyperlane.core import Address
from hyperlane.errors import ConfigError, RuntimeMissing

GPUS = ("cuda:0", "cuda:1", "cuda:2")
OTHER = (Address("10.0.0.2", 7420),)


def devices(config: ServeConfig, gpus=GPUS) -> tuple[str, ...]:
    return own_devices(config, lambda: gpus, lambda asked: tuple(f"found {word}" for word in asked))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ServeConfig(), GPUS),
        (ServeConfig(spare=True), GPUS),
        (ServeConfig(device="cuda:1"), ("cuda:1",)),
        (ServeConfig(local_workers=2), ("auto", "auto")),
        (ServeConfig(local_workers=2, device="cuda:1"), ("cuda:1", "cuda:1")),
        (ServeConfig(workers=OTHER), ()),
        (ServeConfig(workers=OTHER, devices=("0", "cpu")), ("found 0", "found cpu")),
        (ServeConfig(local_workers=0), ()),
    ],
)
def test_a_machine_with_several_gpus_gives_each_a_worker_unless_something_else_was_asked(config, expected):
    assert devices(config) == expected


@pytest.mark.parametrize("gpus", [(), ("cuda:0",)])
def test_other_machines_start_one_worker_that_chooses_itself(gpus):
    assert devices(ServeConfig(), gpus) == ("auto",)
    assert devices(ServeConfig(spare=True), gpus) == ("auto", "auto")


def test_without_a_runtime_the_worker_is_started_and_says_so():
    def none():
        raise RuntimeMissing("no ONNX Runtime is installed")

    assert own_devices(ServeConfig(), none) == ("auto",)


@pytest.mark.parametrize("also", [{"device": "cpu"}, {"local_workers": 2}])
def test_several_devices_and_one_or_a_number_are_refused(also):
    with pytest.raises(ConfigError, match="--devices is a worker for each device: give it or --"):
        devices(ServeConfig(devices=("all",), **also))


@pytest.mark.parametrize(
    ("config", "places", "cores", "expected"),
    [
        (ServeConfig(), ("auto",) * 2, 8, (4, 4)),
        (ServeConfig(), ("cpu",) * 4, 2, (1, 1, 1, 1)),
        (ServeConfig(threads=3), ("cpu",) * 2, 2, (3, 3)),
        (ServeConfig(spare=True), ("auto",) * 3, 8, (4, 4, 4)),
        (ServeConfig(), ("cuda:0", "cpu"), 8, (1, 7)),
        (ServeConfig(), GPUS, 9, (3, 3, 3)),
        (ServeConfig(), (), 8, ()),
    ],
)
def test_cores_are_divided_and_each_worker_has_one_at_least(config, places, cores, expected):
    assert own_threads(config, places, cores) == expected
