"""Which paths are measured, at which addresses, and which of them at the same time."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from hyperlane.cluster.profile.messages import PathResult
from hyperlane.cluster.profile.pairs import End, best, head_end, machine_of, pairs_of, rounds, targets
from hyperlane.core import Address
from hyperlane.testing.toy import toy_facts, toy_plan

WORKER = replace(
    toy_plan(toy_facts(), 1).stages[0].worker,
    data=Address("10.0.0.5", 7421),
    hosts=("10.0.0.5", "192.168.7.5", "fd00::5"),
)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_every_ordered_pair_is_measured_once_and_no_machine_twice_at_the_same_time(machines):
    ends = [End(f"w{number}", str(machine)) for number, machine in enumerate(machines)]
    every = pairs_of(head_end("head"), ends)
    assert len(set(every)) == len(every) == len(ends) ** 2
    planned = rounds(every)
    assert sorted(map(str, (pair for together in planned for pair in together))) == sorted(map(str, every))
    for together in planned:
        busy = [machine for pair in together for machine in {pair.source.machine, pair.target.machine}]
        assert len(busy) == len(set(busy))


def test_disjoint_pairs_are_measured_together():
    ends = [End(f"w{number}", str(number)) for number in range(4)]
    assert max(map(len, rounds(pairs_of(head_end("head"), ends)))) == 2


def test_from_another_machine_every_address_but_loopback_is_tried():
    assert targets(WORKER, local=False) == tuple(Address(host, 7421) for host in WORKER.hosts)
    alone = replace(WORKER, data=Address("127.0.0.1", 7421), hosts=())
    assert targets(alone, local=False) == ()


def test_on_its_own_machine_a_worker_is_reached_over_loopback():
    assert targets(WORKER, local=True)[0] == Address("127.0.0.1", 7421)
    alone = replace(WORKER, data=Address("127.0.0.1", 7421), hosts=())
    assert targets(alone, local=True) == (Address("127.0.0.1", 7421),)


def test_the_path_that_is_best_for_a_token_wins():
    near = PathResult(Address("a", 1), rtt_s=1e-4, bytes_per_s=1e8)
    far = PathResult(Address("b", 1), rtt_s=4e-3, bytes_per_s=1e9)
    slow = PathResult(Address("c", 1), rtt_s=5e-5, bytes_per_s=1e6)
    closed = PathResult(Address("d", 1), failure="nothing answers")
    assert best([far, slow, near, closed]) == near
    assert best([closed]) is None


def test_workers_of_one_machine_are_known_by_what_they_say_of_it():
    assert machine_of(replace(WORKER, machine="m", memory_pool="p/cuda:0")) == "m"
    assert machine_of(replace(WORKER, machine="", memory_pool="p/cuda:0")) == "p"
    assert machine_of(replace(WORKER, machine="", memory_pool="")) == WORKER.name
