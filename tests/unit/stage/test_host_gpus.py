"""What `--devices` means on machines with none, one and several GPUs."""

import functools

import pytest

from hyperlane.errors import ConfigError, RuntimeMissing
from hyperlane.stage.devices import devices_of, gpus
from hyperlane.stage.providers import choose_device

GPU, CPU = ["onnxruntime-gpu 1.31.1"], ["onnxruntime 1.31.1"]


def here(count: int):
    """A machine with so many CUDA devices."""

    def counted(row):
        return count if row.name == "cuda" else 1

    choose = functools.partial(choose_device, installed=GPU if count else CPU, count=counted, beside=[])
    return functools.partial(devices_of, choose=choose, count=counted), functools.partial(gpus, choose, counted)


def test_all_are_the_gpus_and_the_processor_where_there_is_none():
    assert here(3)[0](["all"]) == ("cuda:0", "cuda:1", "cuda:2")
    assert here(0)[0](["all"]) == ("cpu",)
    assert here(2)[0](["all", "cpu"]) == ("cuda:0", "cuda:1", "cpu")
    assert here(0)[1]() == ()


def test_a_number_is_a_gpu_of_the_best_kind():
    assert here(3)[0](["0", "2"]) == ("cuda:0", "cuda:2")
    with pytest.raises(RuntimeMissing, match="names GPU 3: there are cuda:0, cuda:1, cuda:2"):
        here(3)[0](["3"])
    with pytest.raises(RuntimeMissing, match=r"GPU 0: there is none that can be used \(not cuda: "):
        here(0)[0](["0"])


def test_names_mean_what_device_means_by_them():
    assert here(2)[0](["cuda", "cuda:1", "cpu", "cpu"]) == ("cuda:0", "cuda:1", "cpu", "cpu")
    with pytest.raises(RuntimeMissing, match="2 such devices are found"):
        here(2)[0](["cuda:2"])


def test_a_gpu_gets_one_process():
    with pytest.raises(ConfigError, match="cuda:1 twice"):
        here(2)[0](["all", "1"])
