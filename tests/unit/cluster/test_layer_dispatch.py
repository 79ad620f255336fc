"""Which piece is asked of whom: preferences, failures, laggards and liars, as data."""

from __future__ import annotations

import pytest

from hyperlane.cluster.layers.dispatch import EARLIER, STRIKES, Dispatch, SourceKind
from hyperlane.cluster.layers.meter import Meter
from hyperlane.cluster.layers.refutation import Refutation
from hyperlane.store.pieces import PIECE_BYTES

HEAD, PEER, HUB = SourceKind.HEAD, SourceKind.PEER, SourceKind.HUB
TWO = 2 * PIECE_BYTES


def dispatch(*kinds: SourceKind, **tensors: int) -> Dispatch:
    made = Dispatch([(kind, f"{kind} {number}") for number, kind in enumerate(kinds)])
    for name, nbytes in tensors.items():
        made.want(name, nbytes)
    return made


def asked(made: Dispatch, source: int, now_s: float = 0.0) -> tuple[str, int] | None:
    piece = made.next(source, now_s)
    return None if piece is None else (piece.name, piece.index)


def test_pieces_are_asked_for_once_and_in_the_order_of_the_tensors():
    made = dispatch(HEAD, HEAD, a=TWO, b=5)
    assert [asked(made, source) for source in (0, 1, 0, 1)] == [("a", 0), ("a", 1), ("b", 0), None]


def test_a_peer_is_asked_only_for_what_it_holds():
    made = dispatch(PEER, a=5, b=5)
    assert asked(made, 0) is None
    made.holds(0, ["b"])
    assert asked(made, 0) == ("b", 0)
    assert asked(made, 0) is None


def test_the_head_leaves_to_peers_what_they_hold_and_helps_when_nothing_else_is_left():
    made = dispatch(HEAD, PEER, a=TWO, b=5)
    made.holds(1, ["a"])
    assert [asked(made, 0), asked(made, 0)] == [("b", 0), ("a", 0)]
    assert asked(made, 1) == ("a", 1)


def test_the_hub_is_asked_for_nothing_that_the_lan_has():
    made = dispatch(HUB, PEER, a=TWO, b=5)
    made.holds(1, ["a"])
    assert [asked(made, 0), asked(made, 0)] == [("b", 0), None]
    assert asked(dispatch(HUB, HEAD, a=5), 0) is None


def test_the_hub_stands_in_for_a_lan_that_fails():
    made = dispatch(HUB, HEAD, a=5)
    made.failed(1, made.next(1, 0.0), "gone", 0.0)
    assert asked(made, 0, 0.1) == ("a", 0)


def test_the_head_is_spared_for_a_moment_while_peers_have_not_said_what_they_hold():
    made = dispatch(HEAD, PEER, a=5)
    assert asked(made, 0, 0.0) is None
    assert asked(made, 0, 60.0) == ("a", 0)


def test_what_nobody_can_verify_comes_from_the_hub_alone():
    made = dispatch(HEAD, PEER, HUB)
    made.want("a", 5, verifiable=False)
    made.holds(1, ["a"])
    assert [asked(made, source) for source in (0, 1, 2)] == [None, None, ("a", 0)]


def test_a_tensor_that_is_waited_for_goes_first():
    made = dispatch(HEAD, a=5)
    made.want("b", 5, first=True)
    assert asked(made, 0) == ("b", 0)


def test_what_an_earlier_process_left_is_asked_of_nobody():
    made = dispatch(HEAD, a=3 * PIECE_BYTES)
    made.have("a", {0, 2})
    assert [asked(made, 0), asked(made, 0)] == [("a", 1), None]
    assert made.contributors("a") == {0: EARLIER, 2: EARLIER}


def test_a_piece_that_failed_is_asked_of_another_source_and_the_failing_one_rests():
    made = dispatch(HEAD, HEAD, a=5)
    piece = made.next(0, 0.0)
    made.failed(0, piece, "reset", 0.0)
    assert asked(made, 0, 0.1) is None
    assert asked(made, 1, 0.1) == ("a", 0)


def test_a_source_is_left_for_good_after_so_many_failures_in_a_row_and_says_why():
    made, now_s = dispatch(HEAD, a=5), 0.0
    for _ in range(STRIKES):
        assert made.stuck("a") is None
        piece = made.next(0, now_s)
        assert piece is not None
        made.failed(0, piece, "no route", now_s)
        now_s += 60.0
    assert asked(made, 0, now_s) is None
    assert made.stuck("a") == "head 0: no route"


def test_pieces_that_fail_together_are_one_failure():
    made = dispatch(HEAD, a=8 * PIECE_BYTES)
    pieces = [made.next(0, 0.0) for _ in range(8)]
    for piece in pieces:
        made.failed(0, piece, "cable", 0.0)
    assert asked(made, 0, 1.0) is not None


def test_a_success_forgives_failures():
    made, now_s = dispatch(HEAD, a=20 * PIECE_BYTES), 0.0
    for _ in range(3 * STRIKES):
        made.failed(0, made.next(0, now_s), "flaky", now_s)
        now_s += 60.0
        made.arrived(0, made.next(0, now_s), now_s)
    assert asked(made, 0, now_s) is not None


def test_a_piece_that_is_late_is_asked_of_an_idle_source_too_and_the_first_answer_counts():
    made = dispatch(HEAD, HEAD, a=5)
    late = made.next(0, 0.0)
    assert asked(made, 1, 0.5) is None
    again = made.next(1, 10.0)
    assert again == late
    assert made.arrived(1, again, 10.1)
    assert not made.arrived(0, late, 11.0)
    assert made.contributors("a") == {0: 1}


def test_a_slow_source_is_asked_only_for_what_no_other_has():
    made = dispatch(PEER, PEER, a=8 * PIECE_BYTES, b=5)
    made.holds(0, ["a", "b"])
    made.holds(1, ["a"])
    slow, fast = made.next(0, 0.0), made.next(1, 0.0)
    made.arrived(1, fast, 0.1)
    made.arrived(0, slow, 5.0)
    assert asked(made, 0, 5.0) == ("b", 0)
    assert asked(made, 1, 5.0) == ("a", 2)


def test_nothing_is_hopeless_before_every_peer_has_said_what_it_has():
    made = dispatch(PEER, a=5)
    assert made.stuck("a") is None
    made.holds(0, [])
    assert made.stuck("a") == "nobody has it"


# --- liars ---------------------------------------------------------------------------------------------------


def send(made: Dispatch, source: int, count: int, now_s: float = 0.0) -> None:
    for _ in range(count):
        piece = made.next(source, now_s)
        assert piece is not None
        assert made.arrived(source, piece, now_s + 0.1)


def test_one_sender_of_a_wrong_tensor_is_left_out_at_once():
    made = dispatch(PEER, HEAD, a=TWO)
    made.holds(0, ["a"])
    refutation = Refutation(made, ["peer", "head"])
    send(made, 0, 2)
    refutation.wrong("a", TWO, {0: "x", 1: "y"})
    assert asked(made, 0) is None
    assert [asked(made, 1), asked(made, 1)] == [("a", 0), ("a", 1)]


@pytest.mark.parametrize("liar", [0, 1])
def test_of_several_senders_the_liar_is_found_by_comparison_and_the_honest_one_stays(liar):
    made = dispatch(PEER, PEER, HEAD, a=TWO, b=TWO)
    for peer in (0, 1):
        made.holds(peer, ["a", "b"])
    refutation = Refutation(made, ["one", "two", "head"])
    send(made, 0, 1)
    send(made, 1, 1)
    right = {0: "r0", 1: "r1"}
    refutation.wrong("a", TWO, {**right, liar: "wrong"})
    assert asked(made, 0) == ("b", 0)  # nobody is out yet, but the head alone is asked for the tensor again
    send(made, 2, 2)
    assert refutation.suspects("a")
    refutation.right("a", right)
    assert asked(made, 1 - liar, 1.0) is not None
    assert asked(made, liar, 1.0) is None


def test_wrong_bytes_of_an_earlier_process_are_blamed_on_nobody():
    made = dispatch(HEAD, a=TWO)
    made.have("a", {0, 1})
    Refutation(made, ["head"]).wrong("a", TWO, {0: "x", 1: "y"})
    assert [asked(made, 0), asked(made, 0)] == [("a", 0), ("a", 1)]


def test_when_all_lie_the_reason_is_told():
    made = dispatch(HEAD, a=5)
    send(made, 0, 1)
    Refutation(made, ["head"]).wrong("a", 5, {0: "x"})
    assert "not what they should be" in str(made.stuck("a"))


def test_a_tensor_whose_one_believed_source_is_gone_may_come_from_others():
    made = dispatch(HEAD, PEER, a=5)
    made.holds(1, ["a"])
    made.restart("a", 5, only=0)
    assert asked(made, 1) is None
    made.banish(0, "gone")
    assert asked(made, 1) == ("a", 0)


# --- how far it is -------------------------------------------------------------------------------------------


def test_the_meter_tells_sources_apart_and_counts_no_cached_byte_as_moved():
    meter = Meter()
    for name in ("a", "b"):
        meter.expect(name, 100)
    meter.add("a", SourceKind.CACHE, 100, 0.0)
    meter.add("b", HEAD, 30, 0.0)
    meter.add("b", PEER, 20, 1.0)
    moved = meter.read(1.0)
    assert (moved.done, moved.total, moved.sources) == (150, 200, (("cache", 100), ("peer", 20), ("head", 30)))
    assert moved.rate == 50.0
    meter.forget("b")
    assert meter.read(100.0).done == 100
    assert meter.read(100.0).rate == 0.0
