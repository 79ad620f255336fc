import re
import sys

import pytest

from hyperlane.errors import RuntimeMissing
from hyperlane.stage.hardware import Hardware
from hyperlane.stage.providers import check_runtime, choose_device


def test_one_runtime_is_named_with_its_version():
    assert check_runtime(["onnxruntime 1.31.1"]) == "onnxruntime 1.31.1"


def test_two_runtimes_are_refused_naming_both_and_what_to_do():
    with pytest.raises(RuntimeMissing) as refusal:
        check_runtime(["onnxruntime 1.31.1", "onnxruntime-gpu 1.31.0"])
    text = str(refusal.value)
    assert "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.0" in text
    assert "pip uninstall onnxruntime onnxruntime-gpu" in text


def test_no_runtime_is_refused_naming_the_extras(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeMissing, match=r"hyperlane\[cpu\], hyperlane\[cuda\], hyperlane\[webgpu\]"):
        check_runtime([])


def test_auto_takes_what_the_installed_runtime_can_run():
    device = choose_device("auto", ["onnxruntime 1.31.1"], count=lambda row: int(row.name == "cpu"))
    assert (device.name, device.runtime_version) == ("cpu", "1.31.1")


def test_a_device_that_is_not_supported_or_not_known_is_refused():
    with pytest.raises(RuntimeMissing, match=r"cuda:0.*--device cpu"):
        choose_device("cuda:0", ["onnxruntime-gpu 1.31.1"], count=lambda row: 0, hardware=WHOLE)
    with pytest.raises(RuntimeMissing, match="unknown device 'abacus'"):
        choose_device("abacus", ["onnxruntime 1.31.1"])


WHOLE = Hardware(nvidia=True, card=True, driver=True, cuda=True, vulkan=True)
CUDA, CPU, PLUGIN = ["onnxruntime-gpu 1.31.1"], ["onnxruntime 1.31.1"], ["onnxruntime-ep-webgpu"]


@pytest.mark.parametrize(
    ("installed", "beside", "cards", "chosen", "why"),
    [
        (CUDA, [], {"cuda"}, "cuda", "the best there is"),
        (
            CUDA,
            [],
            set(),
            "cpu",
            r"not cuda: no such device is found: check the driver.*not webgpu: .*hyperlane\[webgpu\]",
        ),
        (CPU, [], {"cuda"}, "cpu", r"not cuda: onnxruntime 1.31.1 is installed.*hyperlane\[cuda\] instead"),
        (CPU, PLUGIN, set(), "cpu", "not webgpu: no such device is found: .*libvulkan1"),
    ],
)
def test_auto_says_what_it_chose_and_what_would_make_a_better_one_usable(installed, beside, cards, chosen, why):
    count = lambda row: int(row.name in cards or row.name == "cpu")  # noqa: E731 (a line as long as its use)
    device = choose_device("auto", installed, count, beside, WHOLE)
    assert device.name == chosen
    assert re.search(why, device.reason)


@pytest.mark.parametrize("name", ["directml", "coreml", "openvino", "migraphx"])
def test_providers_that_were_never_run_are_refused_saying_so(name):
    with pytest.raises(RuntimeMissing, match=f"'{name}' cannot be used: it is not supported yet .never run"):
        choose_device(name, CPU, lambda row: 1, [])


def test_a_device_beyond_those_that_are_there_is_refused_with_their_number():
    with pytest.raises(RuntimeMissing, match="2 such devices are found"):
        choose_device("cuda:2", CUDA, lambda row: 2, [])
    assert choose_device("cuda:1", CUDA, lambda row: 2, []).index == 1


NONE, BARE = Hardware(nvidia=False, card=False, driver=False), Hardware(nvidia=True, card=True, driver=False)
DRIVEN = Hardware(nvidia=True, card=True, driver=True)
AMD = Hardware(nvidia=False, card=True, driver=False)
LOADER = "Vulkan's loader is missing: install it .*libvulkan1" if sys.platform == "linux" else "needs|found"


@pytest.mark.parametrize(
    ("hardware", "installed", "beside", "cuda", "webgpu"),
    [
        (NONE, CPU, [], "no NVIDIA card is seen here", "no graphics card is seen here"),
        (NONE, CUDA, PLUGIN, "no NVIDIA card is seen here", "no graphics card is seen here"),
        (BARE, CPU, [], "an NVIDIA card without its driver: install", r"hyperlane\[webgpu\]"),
        (DRIVEN, CPU, [], r"onnxruntime 1.31.1 is installed.*hyperlane\[cuda\] instead", r"hyperlane\[webgpu\]"),
        (DRIVEN, CUDA, [], r"CUDA's libraries are not found: install hyperlane\[cuda\]", r"hyperlane\[webgpu\]"),
        (AMD, CPU, PLUGIN, "no NVIDIA card is seen here", LOADER),
        (Hardware(), CPU, [], r"hyperlane\[cuda\] instead", r"hyperlane\[webgpu\]"),
    ],
)
def test_what_keeps_a_better_device_from_use_is_said_as_this_machine_has_it(hardware, installed, beside, cuda, webgpu):
    device = choose_device("auto", installed, lambda row: int(row.name == "cpu"), beside, hardware)
    assert device.name == "cpu"
    assert re.fullmatch(f"not cuda: .*{cuda}.*; not webgpu: .*{webgpu}.*", device.reason)
