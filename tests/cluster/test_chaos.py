"""The short form of `make chaos`: a few faults of every kind, and no answer is lost, wrong or late for ever."""

from __future__ import annotations

import itertools
import sys

import pytest

from hyperlane.testing.chaos import cluster
from hyperlane.testing.chaos.audit import Allowance, Level, grown
from hyperlane.testing.chaos.cluster import WorkerKind, free_ports
from hyperlane.testing.chaos.run import Scene, run_chaos
from hyperlane.testing.chaos.schedule import Kind, Moment, sampler, schedule
from hyperlane.testing.chaos.standstill import overlap_s
from hyperlane.testing.tiny_models import write_tiny_model

CONTEXT = 1024

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="cables are addresses of loopback that only Linux has"),
    pytest.mark.usefixtures("nothing_is_left"),
]


@pytest.fixture(scope="module")
def roomy_model(tmp_path_factory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("models") / "roomy.gguf", context=CONTEXT))


def test_every_kind_of_fault_changes_no_answer_and_leaves_nothing(roomy_model, tmp_path):
    scene = Scene(roomy_model, workers=3, kind=WorkerKind(step_ms=2.0, load_ms=50.0), context=CONTEXT)
    faults = list(itertools.islice(sampler(seed=5, longest_s=0.4), len(Kind)))
    assert {fault.kind for fault in faults} == set(Kind)
    outcome = run_chaos(scene, faults, tmp_path, seed=5)
    assert outcome.problems() == []
    assert len(outcome.records) == len(faults)
    assert sum(record.hit for record in outcome.records) > len(faults) // 2
    assert outcome.tally.ended > len(faults)


def test_a_schedule_has_every_fault_at_every_moment_and_is_the_seeds_own():
    first = list(itertools.islice(schedule(1), 2 * len(Kind) * len(Moment)))
    assert {(fault.kind, fault.moment) for fault in first[: len(Kind) * len(Moment)]} == set(
        itertools.product(Kind, Moment)
    )
    assert first == list(itertools.islice(schedule(1), len(first)))
    assert first != list(itertools.islice(schedule(2), len(first)))


def test_what_a_process_holds_more_than_it_may_is_told():
    before = Level(pid=1, threads=10, files=9, sockets=9, children=0, memory=50 << 20)
    after = Level(pid=1, threads=12, files=9, sockets=12, children=0, memory=70 << 20)
    assert grown("it", before, after, Allowance(threads=2, files=0, sockets=3, memory=20 << 20)) == []
    told = grown("it", before, after, Allowance(threads=1, files=0, sockets=2, memory=19 << 20))
    assert [text.split(":")[0] for text in told] == [
        "it has 2 more threads",
        "it has 3 more sockets",
        "it has 20 MiB more",
    ]


def test_ports_that_were_given_out_are_given_to_nobody_else(monkeypatch):
    monkeypatch.setattr(cluster, "_given", set())
    monkeypatch.setattr(cluster, "PORTS", (21000, 21040))
    given = [free_ports(2) for _ in range(8)]
    assert len({port for first in given for port in (first, first + 1)}) == 2 * len(given)


def test_of_a_gap_what_nothing_moved_does_not_count():
    assert overlap_s([(0.0, 1.0), (4.0, 9.0)], 0.5, 6.0) == 2.5
    assert overlap_s([(4.0, 9.0)], 0.5, 3.0) == 0.0
