"""Who may load, what fits, what is dropped when: the host with the toy model, without sockets."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from hyperlane.core import Address, Epoch, HeadId
from hyperlane.errors import (
    DoesNotFit,
    HyperlaneError,
    LoadFailed,
    MalformedModel,
    ProtocolError,
    WorkerBusy,
    WorkerUnreachable,
)
from hyperlane.stage.host import StageHost
from hyperlane.stage.lease import Lease
from hyperlane.stage.orders import LoadOrder, LoadProgress, StageKey, WeightSources
from hyperlane.stage.stage import StageState
from hyperlane.stage.terms import hello_to, serves
from hyperlane.testing.fake_engine import FakeEngine
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs
from hyperlane.wire.frame import Role
from hyperlane.wire.limits import Limits
from hyperlane.wire.listener import Refusal

HEAD, OTHER = HeadId(b"h" * 16), HeadId(b"o" * 16)
SPEC = toy_specs(toy_plan(toy_facts(), stages=2))[0]


def order(head: HeadId = HEAD, counter: int = 1, needed: int = 100) -> LoadOrder:
    spec = replace(SPEC, epoch=Epoch(head, counter))
    return LoadOrder(spec, WeightSources(), weight_bytes=needed, kv_bytes=0, workspace_bytes=0)


def nobody(address, hello):
    raise WorkerUnreachable(f"nothing answers at {address}")


def host_with(load=lambda order, progress: FakeEngine(order.spec), **settings) -> StageHost:
    settings = {"free_memory": lambda: 1000, "memory_limit": 1000} | settings
    return StageHost("worker-a", load, nobody, **settings)


def ignore(progress: LoadProgress) -> None:
    pass


def keys(host: StageHost, head: HeadId = HEAD) -> list[StageKey]:
    return [key for key, _ in host.renew(head).stages]


def test_a_lease_ends_when_it_is_not_renewed():
    lease = Lease(HEAD, taken_at=0.0, renewed_s=10.0, length_s=15.0)
    assert lease.remaining_s(20.0) == 5.0
    assert lease.remaining_s(25.0) == 0.0
    assert lease.renewed(24.0).remaining_s(25.0) == 14.0


def test_a_loaded_stage_waits_for_its_links_and_its_head_holds_the_lease():
    host = host_with()
    host.load(order(), ignore)
    health = host.renew(HEAD)
    assert health.holds_lease
    assert health.lease_s == pytest.approx(15.0, abs=1.0)
    ((key, stage),) = health.stages
    assert key == order().key
    assert stage.state is StageState.WAITING
    host.close()


def test_another_head_is_told_who_holds_the_worker_and_since_when():
    host = host_with()
    host.load(order(), ignore)
    with pytest.raises(WorkerBusy, match=rf"worker-a is held by head {HEAD.hex()[:8]} since \d\d:\d\d:\d\d"):
        host.load(order(OTHER), ignore)
    assert not host.renew(OTHER).holds_lease
    host.close()


def test_unloading_everything_ends_the_lease_and_may_be_repeated():
    host = host_with()
    host.load(order(), ignore)
    assert host.unload(HEAD) == 1
    assert host.unload(HEAD) == 0
    host.load(order(OTHER), ignore)
    host.close()


def test_unloading_one_stage_leaves_the_others():
    host = host_with()
    host.load(order(counter=1), ignore)
    host.load(order(counter=2), ignore)
    assert host.unload(HEAD, order(counter=1).key) == 1
    assert keys(host) == [order(counter=2).key]
    assert host.unload(OTHER, order(counter=2).key) == 0
    host.close()


def test_a_head_that_is_not_heard_of_loses_its_stages_and_another_may_load():
    host = host_with(lease_s=0.0)
    host.load(order(), ignore)
    host.expire()
    assert keys(host) == []
    host.load(order(OTHER), ignore)
    host.close()


def test_a_lease_that_ran_out_does_not_wait_for_the_clock_to_be_looked_at():
    host = host_with(lease_s=0.0)
    host.load(order(), ignore)
    host.load(order(OTHER), ignore)
    assert keys(host, HEAD) == []
    host.close()


def test_stages_are_admitted_only_while_their_bytes_fit_together():
    host = host_with(memory_limit=250)
    host.load(order(counter=1), ignore)
    host.load(order(counter=2), ignore)
    assert host.memory_free() == 50
    with pytest.raises(DoesNotFit, match="are missing"):
        host.load(order(counter=3), ignore)
    host.unload(HEAD, order(counter=1).key)
    host.load(order(counter=3), ignore)
    host.close()


def test_a_stage_that_stays_gives_its_engine_to_the_next_epoch():
    built = []
    host = host_with(lambda order, progress: built.append(FakeEngine(order.spec)) or built[-1], memory_limit=150)
    first = order(counter=1)
    host.load(first, ignore)
    second = replace(order(counter=2), held=first.key)
    stage = host.load(second, ignore)
    assert stage.engine is built[0]
    assert len(built) == 1
    assert keys(host) == [second.key]
    assert host.memory_free() == 50
    assert isinstance(host.admit(hello_to(first.spec, Role.UPSTREAM, FakeEngine(first.spec).element)), Refusal)
    host.close()


@pytest.mark.parametrize(
    "change", [{"slots": 3}, {"context": 100}, {"index": 1}, {"stages": 1}, {"max_step_tokens": 9}]
)
def test_a_stage_that_is_not_the_same_is_not_taken_over_and_stays(change):
    """Nor is another one built: its head counts on the KV entries."""
    host = host_with()
    first = order(counter=1)
    host.load(first, ignore)
    other = replace(order(counter=2), held=first.key)
    with pytest.raises(LoadFailed, match="is not on worker"):
        host.load(replace(other, spec=replace(other.spec, **change)), ignore)
    assert keys(host) == [first.key]
    host.close()


def test_a_stage_whose_place_alone_changes_stays():
    held = replace(SPEC, epoch=Epoch(HEAD, 1), index=1, stages=4)
    assert serves(held, replace(held, epoch=Epoch(HEAD, 2), index=2, stages=5))
    assert not serves(held, replace(held, epoch=Epoch(OTHER, 2)))
    assert not serves(held, replace(held, epoch=Epoch(HEAD, 1)))
    assert not serves(held, replace(held, epoch=Epoch(HEAD, 2), index=3))


def test_what_the_device_has_not_free_is_not_promised():
    host = host_with(free_memory=lambda: 40)
    with pytest.raises(DoesNotFit):
        host.load(order(), ignore)
    assert not host.renew(HEAD).holds_lease


def test_bytes_that_are_being_loaded_are_promised_once():
    seen = []
    host = host_with(load=lambda o, progress: seen.append(host.memory_free()) or FakeEngine(o.spec))
    host.load(order(needed=300), ignore)
    assert seen == [700]
    assert host.memory_free() == 700
    host.close()


@pytest.mark.parametrize("error", [MalformedModel("bad magic"), MemoryError("none left")])
def test_a_load_that_fails_leaves_nothing_behind(error):
    def fail(order, progress):
        raise error

    host = host_with(load=fail)
    with pytest.raises(MalformedModel if isinstance(error, MalformedModel) else LoadFailed, match=str(error)):
        host.load(order(), ignore)
    assert host.memory_free() == 1000
    assert not host.renew(HEAD).holds_lease


def test_the_same_stage_cannot_be_loaded_twice():
    host = host_with()
    host.load(order(), ignore)
    with pytest.raises(LoadFailed, match="already"):
        host.load(order(), ignore)
    host.close()


def test_a_load_is_given_up_at_its_next_report_when_it_is_unloaded():
    started = threading.Event()
    go_on = threading.Event()

    def slow(order, progress):
        started.set()
        go_on.wait()
        progress(LoadProgress("half", 1, 2))
        raise AssertionError("the load went on")

    host = host_with(load=slow)
    raised: list[HyperlaneError] = []

    def load() -> None:
        try:
            host.load(order(), ignore)
        except HyperlaneError as error:
            raised.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    started.wait()
    assert [stage.state for _, stage in host.renew(HEAD).stages] == [StageState.LOADING]
    host.cancel(order().key, "the head's call ended")
    go_on.set()
    thread.join()
    assert isinstance(raised[0], LoadFailed)
    assert "the head's call ended" in str(raised[0])
    assert keys(host) == []


def test_a_load_that_ends_after_it_was_given_up_is_closed():
    closed = []

    class Engine(FakeEngine):
        def close(self) -> None:
            closed.append(self)

    def quick(o, progress):
        host.cancel(o.key, "too late")
        return Engine(o.spec)

    host = host_with(load=quick)
    with pytest.raises(LoadFailed, match="too late"):
        host.load(order(), ignore)
    assert len(closed) == 1
    assert keys(host) == []


def test_a_draining_worker_keeps_its_stages_and_takes_no_more():
    host = host_with()
    host.load(order(counter=1), ignore)
    assert host.drain() == 1
    assert host.drain() == 1
    with pytest.raises(WorkerBusy, match="draining"):
        host.load(order(counter=2), ignore)
    assert host.renew(HEAD).draining
    assert keys(host) == [order(counter=1).key]
    host.close()


def test_a_link_is_admitted_once_for_each_end_of_a_loaded_stage():
    host = host_with()
    stage = host.load(order(), ignore)
    hello = hello_to(stage.spec, Role.UPSTREAM, stage.engine.element)
    assert isinstance(host.admit(hello), Limits)
    assert isinstance(host.admit(hello), Refusal)
    assert isinstance(host.admit(replace(hello, role=Role.DOWNSTREAM)), Limits)
    host.close()


def test_a_link_of_another_epoch_stage_or_head_is_refused():
    host = host_with()
    stage = host.load(order(), ignore)
    hello = hello_to(stage.spec, Role.UPSTREAM, stage.engine.element)
    for wrong in (replace(hello, epoch=Epoch(HEAD, 2)), replace(hello, epoch=Epoch(OTHER, 1)), replace(hello, stage=1)):
        refusal = host.admit(wrong)
        assert isinstance(refusal, Refusal)
        assert "not loaded" in refusal.reason
    host.close()


def test_a_next_stage_that_cannot_be_reached_leaves_the_place_free():
    host = host_with()
    host.load(order(), ignore)
    for _ in range(2):
        with pytest.raises(WorkerUnreachable):
            host.connect(order().key, Address("127.0.0.1", 9))
    host.close()


def test_connecting_a_stage_that_is_not_there_is_an_error():
    with pytest.raises(LoadFailed, match="not loaded"):
        host_with().connect(order().key, Address("127.0.0.1", 9))


def test_closing_drops_everything_and_may_be_repeated():
    host = host_with()
    stage = host.load(order(), ignore)
    host.close()
    host.close()
    assert stage.health().state is StageState.CLOSED
    with pytest.raises(ProtocolError):
        stage.reserve(Role.UPSTREAM)


def test_a_device_is_measured_only_while_no_stage_is_there():
    host = host_with()
    with host.measuring(), pytest.raises(WorkerBusy, match="being measured already"), host.measuring():
        pass
    host.load(order(), ignore)
    with pytest.raises(WorkerBusy, match="runs stages"), host.measuring():
        pass
    host.unload(HEAD)
    with host.measuring():
        pass


def test_no_stage_is_loaded_while_the_device_is_measured():
    host = host_with()
    with host.measuring(), pytest.raises(WorkerBusy, match="try again"):
        host.load(order(), ignore)
    host.load(order(), ignore)
