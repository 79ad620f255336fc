"""What is subtracted from what: an engine of programmed cost on a clock of its own is measured exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from hyperlane.cluster.profile import device, steps
from hyperlane.cluster.profile.device import Bench, measure_device
from hyperlane.cluster.profile.shape import ProfileShape
from hyperlane.core import ElementType, Row, StageSpec
from hyperlane.errors import LoadFailed
from hyperlane.models import inventory
from hyperlane.testing.toy import toy_facts
from hyperlane.wire.candidates import candidates_bytes

MODEL = toy_facts(vocab=512)
TYPES = ("F32",) * len(inventory.layer_tensors(MODEL, 0))
SHAPE = ProfileShape(MODEL, (TYPES,) * 12, "F32", "F32", (1, 2, 4), (2, 16), kv_entries=64, prompt_entries=32)
STEP_S, ROW_S, TOKEN_S, EMBED_S, PROJECT_S = 1e-3, 2e-3, 1e-4, 3e-5, 7e-3
LAYER_BYTES = 50 << 20


class Clock:
    """Seconds that pass only when an engine says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


class Machine:
    """Counts what its engines take, in time and in bytes."""

    def __init__(self, slowness: float = 1.0) -> None:
        self.clock, self.taken, self.slowness = Clock(), 100 << 20, slowness
        self.built: list[StageSpec] = []
        self.disturbance: Callable[[int], float] = lambda _step: 1.0
        self.steps = 0

    def build(self, spec: StageSpec, source: object) -> ProgrammedEngine:
        self.built.append(spec)
        return ProgrammedEngine(self, spec)


class ProgrammedEngine:
    """Implements `Engine`; knows its cost and nothing else."""

    element = ElementType.F32
    private_bytes = 0
    token_s = staticmethod(lambda tokens: TOKEN_S * tokens)

    def __init__(self, machine: Machine, spec: StageSpec) -> None:
        self._machine, self._spec, self._lengths = machine, spec, [0] * spec.slots
        machine.taken += LAYER_BYTES * len(spec.layers)

    def input_buffer(self, rows: Sequence[Row]) -> memoryview:
        token_bytes = 4 if self._spec.is_first else 4 * MODEL.hidden
        return memoryview(bytearray(token_bytes * sum(row.count for row in rows)))

    def step(self, rows: Sequence[Row]) -> Sequence[memoryview]:
        spec, tokens = self._spec, sum(row.count for row in rows)
        for row in rows:
            assert row.start <= self._lengths[row.slot]
            self._lengths[row.slot] = max(self._lengths[row.slot], row.start + row.count)
        layer_s = ROW_S * len(rows) if tokens == len(rows) else self.token_s(tokens)
        wanted = sum(len(row.want) for row in rows) if spec.is_last else 0
        seconds = STEP_S + len(spec.layers) * layer_s + EMBED_S * tokens * spec.is_first + PROJECT_S * wanted
        machine = self._machine
        machine.clock.now_s += seconds * machine.slowness * machine.disturbance(machine.steps)
        machine.steps += 1
        size = candidates_bytes(rows, spec.model.vocab) if spec.is_last else 4 * MODEL.hidden * tokens
        return (memoryview(bytes(size)),)

    def copy(self, source: int, destination: int, count: int) -> None:
        self._lengths[destination] = count

    def close(self) -> None:
        self._machine.taken -= LAYER_BYTES * len(self._spec.layers)


@pytest.fixture
def measured(monkeypatch):
    """What becomes of a machine's measurement."""
    monkeypatch.setattr(device, "SWEEP_BYTES", 1 << 10)

    def measure(machine: Machine, shape: ProfileShape = SHAPE, room: int = 1 << 40, progress=lambda _told: None):
        monkeypatch.setattr(steps, "time", machine.clock)
        return measure_device(shape, Bench(machine.build, 1, lambda: machine.taken, room), progress)

    return measure


def test_layers_steps_and_ends_are_told_apart(measured):
    profile = measured(Machine())
    assert profile.step_s == pytest.approx(STEP_S)
    for rows in SHAPE.rows:
        assert profile.layer_decode.seconds(rows) == pytest.approx(rows * ROW_S)
        assert profile.project.seconds(rows) == pytest.approx(rows * PROJECT_S)
    for tokens in SHAPE.chunks:
        assert profile.layer_prefill.seconds(tokens) == pytest.approx(tokens * TOKEN_S)
    for tokens in (1, 16):
        assert profile.embed.seconds(tokens) == pytest.approx(tokens * EMBED_S, abs=1e-9)


def test_a_large_chunk_is_measured_where_it_does_not_cost_in_proportion(measured, monkeypatch):
    large = replace(SHAPE, chunks=(2, 8, 32, 64, 256))
    assert [size for size, _ in measured(Machine(), large).layer_prefill.points] == [2, 8, 32, 64]
    monkeypatch.setattr(ProgrammedEngine, "token_s", staticmethod(lambda tokens: 1e-3 if tokens <= 128 else 3e-3))
    points = dict(measured(Machine(), large).layer_prefill.points)
    assert points[256] == pytest.approx(3 * points[64])
    slow = measured(Machine(slowness=1e4), large).layer_prefill.points
    assert [size for size, _ in slow] == [2, 8, 32, 64]


def test_what_slows_a_device_now_and_then_is_not_taken_for_the_device(measured):
    machine = Machine()
    machine.disturbance = lambda step: 3.0 if step % 50 < 14 else 1.0
    disturbed, quiet = measured(machine), measured(Machine())
    for curve in ("layer_decode", "layer_prefill", "project"):
        for (size, found), (_, expected) in zip(
            getattr(disturbed, curve).points, getattr(quiet, curve).points, strict=True
        ):
            assert found == pytest.approx(expected), (curve, size)
    assert disturbed.step_s == pytest.approx(quiet.step_s)


def test_a_layers_bytes_and_those_of_the_empty_process_are_counted(measured):
    machine = Machine()
    profile = measured(machine)
    written = SHAPE.rows[-1] * SHAPE.kv_entries * 4 * MODEL.kv_heads * MODEL.head_dim
    assert profile.layer_bytes == LAYER_BYTES - written
    assert (profile.process_bytes, machine.taken) == (100 << 20, 100 << 20)


def test_a_slow_device_is_measured_with_fewer_layers(measured):
    machines = Machine(), Machine(slowness=30.0)
    profiles = [measured(machine) for machine in machines]
    layers = [max(len(spec.layers) for spec in machine.built) for machine in machines]
    assert layers[0] == 12 > layers[1]
    assert profiles[1].layer_decode.seconds(1) == pytest.approx(30 * ROW_S)


def test_samples_take_no_more_room_than_there_is(measured):
    machine = Machine()
    measured(machine, room=4 * LAYER_BYTES)
    assert max(len(spec.layers) for spec in machine.built) <= 4


def test_a_model_of_one_layer_is_measured_with_two(measured):
    profile = measured(Machine(), replace(SHAPE, layers=(TYPES,)))
    assert profile.layer_decode.seconds(1) == pytest.approx(ROW_S)


def test_a_large_vocabulary_is_counted_up(measured, monkeypatch):
    monkeypatch.setattr(device, "MATRIX_VALUES", 128 * MODEL.hidden)
    machine = Machine()
    profile = measured(machine)
    assert {spec.model.vocab for spec in machine.built} == {128}
    assert profile.project.seconds(1) == pytest.approx(512 / 128 * PROJECT_S)


def test_what_progress_raises_ends_it_and_leaves_nothing(measured):
    machine, told = Machine(), []

    def give_up(progress) -> None:
        told.append(progress)
        if len(told) > 8:
            raise LoadFailed("given up")

    with pytest.raises(LoadFailed):
        measured(machine, progress=give_up)
    assert machine.taken == 100 << 20
    assert [one.done for one in told] == sorted(one.done for one in told)
    assert all(one.done <= one.total for one in told)
