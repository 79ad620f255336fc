"""What the head remembers of paths: measured once, for a while, each machine in one measurement at a time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from hyperlane.cluster.planner.facts import HEAD
from hyperlane.cluster.profile import paths
from hyperlane.cluster.profile.measured import Node
from hyperlane.cluster.profile.messages import PathOrder, PathResult
from hyperlane.cluster.profile.pairs import head_end
from hyperlane.cluster.profile.paths import FAILURE_KEPT_S, KEPT_S, PathBook
from hyperlane.cluster.report import silent
from hyperlane.core import Address, HeadId, NodeId
from hyperlane.errors import WorkerUnreachable
from hyperlane.testing.toy import toy_facts, toy_plan
from hyperlane.wire.probe import PathCost

HEAD_ID = HeadId(b"h" * 16)
WORKER = toy_plan(toy_facts(), 1).stages[0].worker
SPEED = {"10.0.0": 1e8, "10.1.0": 1e9, "127.0.0": 5e9}


class World:
    """Machines by number; each address is as fast as its network. `dead`: addresses that nobody reaches."""

    def __init__(self, monkeypatch) -> None:
        self.now_s, self.asked, self.dead, self.busy = 0.0, [], set(), set()
        monkeypatch.setattr(paths, "measure_path", self.from_head)
        self.book = PathBook(HEAD_ID, head_end("m0"), lambda: self.now_s)

    def from_head(self, address: Address, head: HeadId, tls: object, *, both_ways: bool) -> PathCost:
        assert both_ways
        self.asked.append((HEAD, address.host))
        if address.host in self.dead:
            raise WorkerUnreachable(f"nothing answers at {address}")
        speed = SPEED[address.host.rpartition(".")[0]]
        return PathCost(1e-4, speed, speed / 2)

    def node(self, number: int, machine: int | None = None, *, hosts: tuple[str, ...] = ()) -> Node:
        name, machine = f"w{number}", number if machine is None else machine
        data = Address(hosts[0] if hosts else "127.0.0.1", 7400 + number)
        return Node(
            Asked(self, name, joined=bool(hosts)),
            replace(WORKER, name=name, data=data, machine=f"m{machine}", hosts=hosts),
        )

    def measure(self, *nodes: Node):
        return asyncio.run(self.book.measure(nodes, silent))


class Asked:
    """As much of a `WorkerClient` as is asked."""

    def __init__(self, world: World, name: str, *, joined: bool) -> None:
        self.world, self.name, self.node = world, name, NodeId(name.encode().ljust(16)) if joined else None

    def link_tls(self) -> None:
        return None

    async def measure_path(self, order: PathOrder, timeout_s: float) -> tuple[PathResult, ...]:
        world = self.world
        ends = {self.name, f"w{order.targets[0].port - 7400}"}
        assert not ends & world.busy, "somebody takes part in two measurements"
        world.busy |= ends
        await asyncio.sleep(0)
        world.busy -= ends
        world.asked.append((self.name, order.targets[0].host))
        return tuple(
            PathResult(target, failure="nothing answers")
            if target.host in world.dead
            else PathResult(target, 2e-4, SPEED[target.host.rpartition(".")[0]])
            for target in order.targets
        )


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def test_every_pair_has_its_path_and_the_best_of_several_addresses(world):
    nodes = [world.node(n, hosts=(f"10.0.0.{n}", f"10.1.0.{n}")) for n in (1, 2, 3)]
    facts, routes = world.measure(*nodes)
    assert len({(path.source, path.target) for path in facts}) == len(facts) == 12
    assert {route.address.host.rpartition(".")[0] for route in routes} == {"10.1.0"}
    assert {(path.source == HEAD, path.target == HEAD): path.bytes_per_s for path in facts} == {
        (True, False): 1e9,
        (False, True): 5e8,
        (False, False): 1e9,
    }
    assert not any(path.loopback for path in facts)


def test_what_is_young_is_not_measured_again_and_a_newcomer_is(world):
    one, two, three = (world.node(n, hosts=(f"10.0.0.{n}",)) for n in (1, 2, 3))
    world.measure(one, two)
    count = len(world.asked)
    world.now_s = KEPT_S - 1
    world.measure(one, two)
    assert len(world.asked) == count
    world.measure(one, two, three)
    assert len(world.asked) == count + 5
    world.now_s = 2 * KEPT_S
    world.measure(one, two)
    assert len(world.asked) == count + 5 + count


def test_a_worker_at_another_address_is_measured_anew(world):
    world.measure(world.node(1, hosts=("10.0.0.1",)))
    world.measure(world.node(1, hosts=("10.1.0.1",)))
    assert world.asked == [(HEAD, "10.0.0.1"), (HEAD, "10.1.0.1")]


def test_a_pair_without_a_path_is_left_out_said_so_and_tried_again_soon(world, caplog):
    nodes = [world.node(n, hosts=(f"10.0.0.{n}",)) for n in (1, 2)]
    world.dead = {"10.0.0.2"}
    facts, routes = world.measure(*nodes)
    assert {(path.source, path.target) for path in facts} == {(HEAD, "w1"), ("w1", HEAD), ("w2", "w1")}
    assert {(route.source, route.target) for route in routes} == {(HEAD, "w1"), ("w2", "w1")}
    assert "no path from w1 to w2 could be measured" in caplog.text
    world.dead, world.now_s = set(), FAILURE_KEPT_S + 1
    assert len(world.measure(*nodes)[0]) == 6


def test_plain_workers_of_one_machine_share_what_one_pair_of_them_measures(world):
    nodes = [world.node(n, machine=0) for n in (1, 2, 3)]
    facts, routes = world.measure(*nodes)
    assert len(facts) == 12
    assert all(path.loopback for path in facts)
    assert [asked for asked in world.asked if asked[0] != HEAD] == [("w1", "127.0.0.1")]
    ports = {(route.source, route.target): route.address.port for route in routes}
    assert ports["w1", "w3"] == ports["w2", "w3"] == ports[HEAD, "w3"] == 7403


def test_a_worker_that_listens_on_loopback_alone_is_no_neighbour_of_another_machine(world):
    facts, _ = world.measure(world.node(1, machine=0), world.node(2, hosts=("10.0.0.2",)))
    assert ("w2", "w1") not in {(path.source, path.target) for path in facts}
    assert ("w1", "w2") in {(path.source, path.target) for path in facts}


def test_whether_a_path_leaves_the_machine_is_told_by_its_host_and_not_by_an_address(world):
    world.book = PathBook(HEAD_ID, head_end("m0", "h0"), lambda: world.now_s)
    card = ("10.0.0.1", "10.0.0.2")
    nodes = [world.node(n, machine=0, hosts=(card[n - 1],)) for n in (1, 2)]
    nodes = [replace(node, facts=replace(node.facts, host="h0")) for node in nodes]
    world.dead = {"127.0.0.1"}  # they listen on their network's addresses alone
    assert all(path.loopback for path in world.measure(*nodes)[0])
    elsewhere = [nodes[0], replace(nodes[1], facts=replace(nodes[1].facts, host="h1", name="w3"))]
    away = {(path.source, path.target) for path in world.measure(*elsewhere)[0] if not path.loopback}
    assert away == {(HEAD, "w3"), ("w3", HEAD), ("w1", "w3"), ("w3", "w1")}


def test_paths_that_are_no_longer_believed_are_measured_again_and_others_are_not(world):
    nodes = [world.node(n, hosts=(f"10.0.0.{n}",)) for n in (1, 2, 3)]
    world.measure(*nodes)
    count = len(world.asked)
    world.book.forget(["w1"])
    world.measure(*nodes)
    again = world.asked[count:]
    assert sorted(again) == [
        (HEAD, "10.0.0.1"),
        ("w1", "10.0.0.2"),
        ("w1", "10.0.0.3"),
        ("w2", "10.0.0.1"),
        ("w3", "10.0.0.1"),
    ]
