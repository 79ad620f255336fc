"""What a worker remembers of its device, and when it measures anew."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from hyperlane.cluster.planner.curve import Curve
from hyperlane.cluster.profile import profiler
from hyperlane.cluster.profile.device import Bench
from hyperlane.cluster.profile.profiler import Profiler, ProfileShelf
from hyperlane.cluster.profile.shape import DeviceProfile, ProfileShape
from hyperlane.errors import LoadFailed, WorkerBusy
from hyperlane.testing.toy import toy_facts

SHAPE = ProfileShape(toy_facts(), (("F32",) * 9,), "F32", "F32", (1, 2), (2, 16), 64, 32, 1024)
ONE = Curve(((1, 1e-3), (2, 2e-3)))


def progress(_told: object) -> None:
    pass


@contextmanager
def free():
    yield


@contextmanager
def busy():
    raise WorkerBusy("the worker runs stages")
    yield


class Measuring:
    """Stands in for the measurement; each takes longer than the one before, so that they can be told apart."""

    def __init__(self, monkeypatch, folder) -> None:
        self.count, self.folder = 0, folder
        self.others, self.takes, self.aged = 0.0, 0.0, 0
        self.layers_s = [1e-3]
        monkeypatch.setattr(profiler, "measure_device", self)

    def __call__(self, shape: ProfileShape, bench: Bench, _progress: object) -> DeviceProfile:
        self.count += 1
        self.others += self.takes
        layer = Curve(((1, self.layers_s[self.count % len(self.layers_s)]), (2, 1.0)))
        return DeviceProfile(layer, ONE, ONE, ONE, float(self.count), 0, 0, int(time.time()) - self.aged)

    def profiler(self, *identity: str) -> Profiler:
        bench = Bench(lambda spec, source: None, 1, lambda: 0, 0, lambda: self.others)
        return Profiler(lambda: bench, identity, ProfileShelf(self.folder / "profiles"))


@pytest.fixture
def measuring(monkeypatch, tmp_path):
    return Measuring(monkeypatch, tmp_path)


def test_a_shape_is_measured_once_also_by_the_next_process(measuring):
    first = measuring.profiler("cpu").profile(SHAPE, free, progress)
    assert measuring.profiler("cpu").profile(SHAPE, free, progress) == first
    assert measuring.count == 1


def test_models_of_one_shape_share_a_profile(measuring):
    measuring.profiler("cpu").profile(SHAPE, free, progress)
    other = replace(SHAPE, model=replace(SHAPE.model, name="other", fingerprint="1" * 64))
    measuring.profiler("cpu").profile(other, free, progress)
    assert measuring.count == 1


@pytest.mark.parametrize(
    "other",
    [replace(SHAPE, rows=(1,)), replace(SHAPE, kv_entries=128), replace(SHAPE, layers=(("Q4_0",) * 9,))],
    ids=["rows", "entries", "types"],
)
def test_another_shape_is_measured_for_itself(measuring, other):
    for shape in (SHAPE, other):
        measuring.profiler("cpu").profile(shape, free, progress)
    assert measuring.count == 2


def test_another_device_runtime_or_number_of_threads_is_measured_for_itself(measuring):
    for identity in (("cpu", "1.0", "2"), ("cpu", "1.1", "2"), ("cpu", "1.0", "4")):
        measuring.profiler(*identity).profile(SHAPE, free, progress)
    assert measuring.count == 3


def test_again_measures_again_and_is_remembered(measuring):
    one = measuring.profiler("cpu")
    one.profile(SHAPE, free, progress)
    assert one.profile(SHAPE, free, progress, again=True).step_s == 2.0
    assert one.profile(SHAPE, free, progress).step_s == 2.0


def test_a_worker_that_runs_stages_tells_what_it_remembers_and_refuses_the_rest(measuring):
    one = measuring.profiler("cpu")
    with pytest.raises(WorkerBusy):
        one.profile(SHAPE, busy, progress)
    known = one.profile(SHAPE, free, progress)
    assert one.profile(SHAPE, busy, progress) == known
    assert one.profile(SHAPE, busy, progress, again=True) == known


def test_a_damaged_memory_is_measured_anew(measuring, caplog):
    one = measuring.profiler("cpu")
    one.profile(SHAPE, free, progress)
    (file,) = (measuring.folder / "profiles").iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    assert one.profile(SHAPE, free, progress).step_s == 2.0
    assert "cannot be read" in caplog.text


def test_what_cannot_be_kept_is_measured_all_the_same(measuring, caplog):
    (measuring.folder / "profiles").write_text("a file where the folder should be")
    assert measuring.profiler("cpu").profile(SHAPE, free, progress).step_s == 1.0
    assert "cannot be kept" in caplog.text


def test_nothing_is_remembered_of_a_measurement_that_failed(measuring, monkeypatch):
    def fail(*_arguments: object) -> None:
        raise LoadFailed("no such operator")

    with monkeypatch.context() as patch:
        patch.setattr(profiler, "measure_device", fail)
        with pytest.raises(LoadFailed):
            measuring.profiler("cpu").profile(SHAPE, free, progress)
    assert measuring.profiler("cpu").profile(SHAPE, free, progress).step_s == 1.0


BUSY_S, LONG_AGO_S = 1e6, 1000


def test_a_measurement_beside_busy_programs_is_repeated_after_a_while(measuring, caplog):
    measuring.takes, one = BUSY_S, measuring.profiler("cpu")
    assert one.profile(SHAPE, free, progress).crowded
    assert "may be faster" in caplog.text
    assert one.profile(SHAPE, free, progress).crowded
    assert measuring.count == 1, "it holds for a while"
    measuring.aged = LONG_AGO_S
    one.profile(SHAPE, free, progress, again=True)
    measuring.takes = 0.0
    assert not one.profile(SHAPE, free, progress).crowded
    assert (one.profile(SHAPE, free, progress).step_s, measuring.count) == (3.0, 3), "undisturbed, it holds for good"


def test_of_disturbed_measurements_the_fastest_holds(measuring):
    measuring.takes, measuring.aged, measuring.layers_s = BUSY_S, LONG_AGO_S, [3e-3, 1e-3, 2e-3]
    one = measuring.profiler("cpu")
    found = [one.profile(SHAPE, free, progress).layer_decode.seconds(1) for _ in range(4)]
    assert found == [1e-3, 1e-3, 1e-3, 1e-3]
    assert measuring.count == 4


def test_a_doubtful_profile_is_told_while_stages_keep_it_from_being_measured(measuring):
    measuring.takes, measuring.aged = BUSY_S, LONG_AGO_S
    one = measuring.profiler("cpu")
    known = one.profile(SHAPE, free, progress)
    assert one.profile(SHAPE, busy, progress) == known
