from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hyperlane.cluster.membership import (
    Answered,
    Claim,
    Means,
    MemberId,
    Membership,
    MemberState,
    Passed,
    Seen,
    Silent,
    Source,
    Times,
    Unseen,
    apply,
)
from hyperlane.core import Address, NodeId

TIMES = Times(suspect_after_s=6.0, gone_after_s=30.0)
MDNS, STATIC = Source(Means.MDNS, "lan0"), Source(Means.STATIC, "10.0.0.9:7420")
AT = Address("10.0.0.9", 7420)


def claim(node: int = 1, machine: str = "a" * 16, port: int = 7420, name: str = "box") -> Claim:
    return Claim(MemberId(NodeId(bytes([node]) * 16), port), machine, name, "c" * 16, "0.1.0", 1)


def run(*steps, start: Membership | None = None):
    """The membership after (time, event) pairs, and every change."""
    membership, changes = start or Membership(), []
    for now_s, event in steps:
        membership, new = apply(membership, event, now_s, TIMES)
        changes += new
    return membership, changes


def states(changes) -> list[str]:
    return [str(change.member.state) for change in changes]


def only(membership: Membership):
    (member,) = membership.members.values()
    return member


def test_a_worker_joins_when_it_answers_and_not_when_it_is_seen():
    membership, changes = run((0.0, Seen(claim(), MDNS, AT)), (1.0, Answered(claim(), AT)))
    assert states(changes) == ["joining", "ready"]
    assert [change.is_join for change in changes] == [False, True]
    assert only(membership).sources == {MDNS}
    assert only(membership).address == AT


def test_how_a_worker_was_found_is_remembered_for_every_way():
    membership, _ = run((0.0, Seen(claim(), MDNS, AT)), (0.1, Seen(claim(), STATIC, AT)))
    assert only(membership).sources == {MDNS, STATIC}
    membership, _ = run((0.2, Unseen(claim().member, MDNS)), start=membership)
    assert only(membership).sources == {STATIC}


def test_a_lost_heartbeat_evicts_nobody():
    membership, changes = run((0.0, Answered(claim(), AT)), (2.0, Silent(claim().member, "time-out")))
    assert states(changes) == ["ready"]
    assert only(membership).reason == "time-out"


def test_an_advert_that_fades_evicts_nobody_who_answers():
    _, changes = run(
        (0.0, Seen(claim(), MDNS, AT)),
        (0.1, Answered(claim(), AT)),
        (1.0, Unseen(claim().member, MDNS)),
        (5.0, Answered(claim(), AT)),
        (10.9, Passed()),
    )
    assert states(changes) == ["joining", "ready"]


def test_a_silent_worker_is_suspect_then_gone_at_the_stated_times():
    _, changes = run((0.0, Answered(claim(), AT)), (5.9, Passed()), (6.0, Passed()), (29.9, Passed()), (30.0, Passed()))
    assert [(str(change.member.state), change.member.since_s) for change in changes] == [
        ("ready", 0.0),
        ("suspect", 6.0),
        ("gone", 30.0),
    ]
    assert changes[-1].is_leave


def test_a_suspect_worker_that_answers_is_ready_again_and_that_is_no_join():
    membership, changes = run((0.0, Answered(claim(), AT)), (8.0, Passed()), (9.0, Answered(claim(), AT)))
    assert states(changes) == ["ready", "suspect", "ready"]
    assert not changes[-1].is_join
    assert only(membership).reason == ""


def test_a_worker_that_never_answered_stays_as_long_as_somebody_sees_it():
    membership, _ = run((0.0, Seen(claim(), MDNS)), (100.0, Passed()))
    assert only(membership).state is MemberState.JOINING
    membership, changes = run((101.0, Unseen(claim().member, MDNS)), (107.0, Passed()), start=membership)
    assert states(changes) == ["gone"]
    assert not membership.members


def test_a_copied_identity_is_reported_with_both_names_and_never_merged():
    first, second = claim(name="desk"), claim(machine="b" * 16, name="lap")
    membership, changes = run((0.0, Answered(first, AT)), (1.0, Answered(second, Address("10.0.0.10", 7420))))
    assert states(changes) == ["ready"]
    assert only(membership).claim == first
    assert only(membership).address == AT
    (duplicate,) = membership.duplicates.values()
    assert "'desk'" in str(duplicate)
    assert "'lap'" in str(duplicate)


def test_a_copied_identity_on_another_port_is_a_copy_too():
    membership, _ = run((0.0, Seen(claim(), MDNS)), (1.0, Seen(claim(machine="b" * 16, port=7500), MDNS)))
    assert len(membership.members) == len(membership.duplicates) == 1


def test_two_workers_of_one_machine_share_a_node():
    membership, _ = run((0.0, Answered(claim(), AT)), (0.0, Answered(claim(port=7430), Address("10.0.0.9", 7430))))
    assert len(membership.members) == 2
    assert not membership.duplicates


def test_a_duplicate_is_forgotten_when_it_is_no_longer_seen_and_may_come_when_the_first_is_gone():
    first, second = claim(name="desk"), claim(machine="b" * 16, name="lap")
    membership, _ = run((0.0, Answered(first, AT)), (1.0, Seen(second, MDNS)), (31.0, Passed()))
    assert not membership.members
    assert not membership.duplicates
    membership, changes = run((32.0, Answered(second, AT)), start=membership)
    assert states(changes) == ["ready"]


# --- whatever happens ----------------------------------------------------------------------------------------

claims = st.builds(
    claim, node=st.integers(1, 3), machine=st.sampled_from(["a" * 16, "b" * 16, ""]), port=st.sampled_from([7420, 7421])
)
sources = st.sampled_from([MDNS, STATIC])
events = st.one_of(
    st.builds(Seen, claims, sources, st.just(AT)),
    st.builds(Unseen, claims.map(lambda one: one.member), sources),
    st.builds(Answered, claims, st.just(AT)),
    st.builds(Silent, claims.map(lambda one: one.member), st.just("no route")),
    st.just(Passed()),
)
histories = st.lists(st.tuples(st.floats(0.0, 8.0), events), max_size=40)


@given(histories)
def test_invariants_hold_after_any_history(history):
    membership, now_s = Membership(), 0.0
    answered: dict[MemberId, float] = {}
    for pause_s, event in history:
        now_s += pause_s
        before = membership
        membership, changes = apply(membership, event, now_s, TIMES)
        if isinstance(event, Answered) and event.claim.member in membership.members:
            member = membership.members[event.claim.member]
            if member.answered_s == now_s:
                answered[event.claim.member] = now_s
        for node in {key.node for key in membership.members}:
            machines = {m.claim.machine for m in membership.members.values() if m.id.node == node} - {""}
            assert len(machines) <= 1, "two machines as one node"
        for change in changes:
            was = before.members.get(change.member.id)
            assert change.before == (was.state if was else None)
            assert change.member.state != change.before
            if change.is_leave and change.member.id in answered:
                assert now_s - answered[change.member.id] >= TIMES.gone_after_s, "evicted too early"
        for member in membership.members.values():
            assert member.state is not MemberState.GONE
            if member.state is MemberState.READY:
                assert member.answered_s is not None
                assert now_s - member.answered_s < TIMES.suspect_after_s
        assert apply(before, event, now_s, TIMES) == (membership, changes)
