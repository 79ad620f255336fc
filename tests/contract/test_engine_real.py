"""The conformance suite with the real models, and what only the real engine can get wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hyperlane.core import Precision, Row
from hyperlane.errors import EngineFault, LoadFailed, ProtocolError
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage.loading import load_engine
from hyperlane.stage.onnx_runs import Sessions
from hyperlane.stage.orders import LoadProgress
from hyperlane.store.ready_store import ReadyStore
from hyperlane.testing.engines import (
    ENGINE_CHECKS,
    STEP_TOKENS,
    EngineHarness,
    a_row_does_not_depend_on_the_rows_beside_it,
)
from hyperlane.testing.tiny_models import TinyModel, write_tiny_model
from hyperlane.wire.packing import BLOCK_BYTES, NOT_FINITE


@contextmanager
def harness_of(path: Path, store: Path) -> Iterator[EngineHarness]:
    with GgufFile(path) as file:
        ready = ReadyStore(store)
        yield EngineHarness(read_facts(file), lambda spec: load_engine(spec, file, ready))


def with_all_sessions(engine):
    """The engine after the sessions that are usually made later."""
    assert engine._sessions.singles.get() is not None
    assert engine._sessions.beside.get() is not None
    return engine


class Counted:
    """A session whose runs are noted by a name."""

    def __init__(self, session, runs, name):
        self._session, self._runs, self._name = session, runs, name

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run_with_iobinding(self, binding, options):
        self._runs.append(self._name)
        self._session.run_with_iobinding(binding, options)


class Made:
    """As `Later`, made already."""

    def __init__(self, session):
        self._session = session

    def made(self):
        return self._session

    def close(self):
        pass


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ready")


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[EngineHarness]:
    with harness_of(write_tiny_model(tmp_path / "tiny.gguf", TinyModel(type="Q4_1")), tmp_path / "ready") as harness:
        yield harness


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
def test_smollm2(check, smollm2_path, store):
    with harness_of(smollm2_path, store) as harness:
        check(harness)


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
def test_gemma3(check, gemma3_path, store):
    with harness_of(gemma3_path, store) as harness:
        check(harness)


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
def test_with_all_sessions_made(check, tiny):
    check(replace(tiny, make=lambda spec: with_all_sessions(tiny.make(spec))))


@pytest.mark.parametrize("path", ["smollm2_path", "gemma3_path"])
def test_rows_that_share_a_run_with_a_prompt_of_a_real_model_are_what_they_are_alone(path, store, request):
    with harness_of(request.getfixturevalue(path), store) as harness:
        a_row_does_not_depend_on_the_rows_beside_it(
            replace(harness, make=lambda spec: with_all_sessions(harness.make(spec)))
        )


def test_a_prompt_beside_streams_is_one_run_once_there_is_a_session_for_it(tiny):
    engine, counted = tiny.make(tiny.specs()[0]), []
    usual, beside = engine._sessions.usual, Counted(engine._sessions.beside.get(), counted, "both")
    engine._sessions = replace(engine._sessions, usual=Counted(usual, counted, "one"), beside=Made(beside))
    for rows in ([Row(0, 0, 3)], [Row(1, 0, 3)], [Row(0, 3, 1, (0,)), Row(1, 3, 1, (0,)), Row(4, 0, 9, (8,))]):
        engine.input_buffer(rows)[:] = bytes(4 * sum(row.count for row in rows))
        engine.step(rows)
    assert counted == ["one", "one", "both"]
    engine.close()


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_greedy_answers_of_smollm2_are_the_same_through_any_number_of_stages(stages, smollm2_path, store):
    prompt = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411]
    answers = []
    with harness_of(smollm2_path, store) as harness:
        for count in (1, stages):
            with harness.pipeline(count) as pipeline:
                tokens = list(prompt)
                answer = pipeline.step((Row(2, 0, len(prompt), (len(prompt) - 1,)),), prompt)
                while len(tokens) < 64:
                    tokens.append(int(answer[0][0].ids[0]))
                    answer = pipeline.step((Row(2, len(tokens) - 1, 1, (0,)),), tokens[-1:])
                answers.append(tokens)
    assert answers[0] == answers[1]


def test_a_value_that_is_not_finite_is_a_fault_at_every_stage(tiny):
    first, inner, last = (tiny.make(spec) for spec in tiny.specs(3))
    for engine in (inner, last):
        for rows in ((Row(0, 0, 4, (3,)),), (Row(1, 0, 1, (0,)),)):
            buffer = engine.input_buffer(rows)
            values = np.frombuffer(buffer, np.float32)
            values[:] = 1.0
            values[-1] = np.nan
            with pytest.raises(EngineFault, match="not finite"):
                engine.step(rows)
    first.close()


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_a_packed_value_that_is_not_finite_is_a_fault_at_every_stage(precision, tiny):
    specs = replace(tiny, precision=precision).specs(3)
    for engine in (tiny.make(specs[1]), tiny.make(specs[2])):
        for rows in ((Row(0, 0, 4, (3,)),), (Row(1, 0, 1, (0,)),)):
            buffer = engine.input_buffer(rows)
            buffer[:] = bytes(len(buffer))
            buffer[-BLOCK_BYTES[precision]] = NOT_FINITE
            with pytest.raises(EngineFault, match="not finite"):
                engine.step(rows)


def test_token_ids_beyond_the_vocabulary_are_refused(tiny):
    engine = tiny.make(tiny.specs()[0])
    for token in (-1, tiny.facts.vocab, 1 << 30):
        for rows in ((Row(0, 0, 3),), (Row(0, 0, 1),)):
            count = rows[0].count
            engine.input_buffer(rows)[:] = np.array([0] * (count - 1) + [token], np.int32).tobytes()
            with pytest.raises(ProtocolError, match="vocabulary"):
                engine.step(rows)


def test_a_failure_of_the_runtime_is_a_fault_with_its_cause(tiny):
    engine = tiny.make(tiny.specs()[0])

    class Broken:
        def __getattr__(self, name):
            return getattr(session, name)

        def run_with_iobinding(self, binding, options):
            raise RuntimeError("the device is gone")

    session = engine._sessions.usual
    engine._sessions = Sessions(Broken())
    engine.input_buffer((Row(0, 0, 2),))[:] = bytes(8)
    with pytest.raises(EngineFault, match="the device is gone") as fault:
        engine.step((Row(0, 0, 2),))
    assert isinstance(fault.value.__cause__, RuntimeError)


def test_the_input_buffer_is_the_memory_that_the_engine_reads(tiny):
    engine = tiny.make(tiny.specs(2)[1])
    rows = (Row(1, 0, 1, (0,)), Row(2, 0, 1, (0,)))
    buffer = np.frombuffer(engine.input_buffer(rows), np.float32)
    bound = engine._buffers.slots_in
    assert np.shares_memory(buffer, bound)
    prompt = (Row(0, 0, STEP_TOKENS),)
    assert np.shares_memory(np.frombuffer(engine.input_buffer(prompt), np.float32), engine._buffers.frame_in)


def test_a_second_load_reads_no_tensor(tiny, tmp_path):
    tiny.make(tiny.specs()[0]).close()

    class Closed:
        def __getattr__(self, name):
            raise AssertionError(f"{name} of the source was called")

    again = load_engine(tiny.specs()[0], Closed(), ReadyStore(tmp_path / "ready"))
    again.close()


def test_other_boundaries_find_the_layers_that_are_ready(tiny, tmp_path):
    for spec in tiny.specs(1):
        tiny.make(spec).close()
    before = sorted(entry.name for entry in (tmp_path / "ready").iterdir())
    for spec in tiny.specs(3):
        tiny.make(spec).close()
    assert sorted(entry.name for entry in (tmp_path / "ready").iterdir()) == before


def test_without_a_store_nothing_is_left_behind(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with GgufFile(tmp_path / "tiny.gguf") as file:
        engine = load_engine(tiny.specs()[0], file)
    engine.input_buffer((Row(0, 0, 2, (1,)),))[:] = bytes(8)
    engine.step((Row(0, 0, 2, (1,)),))
    engine.close()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_load_that_is_given_up_leaves_nothing_unfinished(tiny, tmp_path):
    reports: list[LoadProgress] = []

    def report(progress: LoadProgress) -> None:
        reports.append(progress)
        if progress.done == 2:
            raise LoadFailed("given up")

    with GgufFile(tmp_path / "tiny.gguf") as file, pytest.raises(LoadFailed, match="given up"):
        load_engine(tiny.specs()[0], file, ReadyStore(tmp_path / "ready"), progress=report)
    assert [(one.done, one.total) for one in reports] == [(0, 6), (1, 6), (2, 6)]
    assert not list((tmp_path / "ready").glob(".unfinished*"))
