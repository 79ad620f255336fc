"""Where prompts go on from what slots hold: continued, copied, waited for, or left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlane.head.lane import Lane
from hyperlane.head.prefixes import COMPARED, MIN_REUSE, Move, Place, Prefixes, Reuse, common

CHUNK = 64


def held(prefixes, slot, tokens, *, sent=None, prompt=None, exact=0, served=0):
    """A slot that holds these tokens."""
    prompt = len(tokens) if prompt is None else prompt
    sent = len(tokens) if sent is None else sent
    lane = Lane(slot, prompt, len(tokens), sent=sent, slot=slot, served=served, exact=exact)
    prefixes.hold(lane, tokens)
    return lane


def text(length, salt=0):
    return [(7 * number + salt) % 1000 for number in range(length)]


def test_nothing_held_takes_the_lowest_slot():
    assert Prefixes(CHUNK).place(text(100), [1, 2, 3]) == Place(1)


def test_the_lowest_free_slot_goes_on_from_what_it_holds():
    prefixes = Prefixes(CHUNK)
    held(prefixes, 0, text(90))
    assert prefixes.place([*text(90), 5, 6, 7], [0, 1, 2]) == Place(0, 90)


def test_what_a_higher_slot_holds_is_copied_to_the_lowest_and_given_up_there():
    prefixes = Prefixes(CHUNK)
    held(prefixes, 2, text(90))
    assert prefixes.place([*text(90), 5, 6, 7], [0, 1, 2]) == Place(0, 90, moves=(Move(2, 0, 90),))
    assert prefixes.place([*text(90), 8, 9], [1, 2]) == Place(1)


def test_what_the_lowest_slot_holds_moves_to_the_one_used_longest_ago():
    prefixes = Prefixes(CHUNK)
    for slot, served in enumerate((7, 5, 3, 9)):
        held(prefixes, slot, text(50 + slot, salt=slot), served=served)
    assert prefixes.place(text(80, salt=5), [0, 1, 2, 3]) == Place(0, moves=(Move(0, 2, 50),))
    held(prefixes, 0, text(80, salt=5), served=10)
    assert prefixes.place([*text(50), 1, 2, 3], [1, 2, 3]) == Place(1, 50, moves=(Move(2, 1, 50),))


def test_conversations_that_take_turns_in_one_slot_lose_nothing():
    prefixes = Prefixes(CHUNK)
    talks = {name: text(60, salt=name) for name in range(3)}
    for turn in range(12):
        name = turn % 3
        talks[name] += text(20, salt=100 + turn)
        place = prefixes.place(talks[name], [0, 1, 2, 3])
        assert place.slot == 0
        assert place.count == (0 if turn < 3 else len(talks[name]) - 20)
        lane = Lane(turn, len(talks[name]), len(talks[name]), sent=len(talks[name]), slot=0, served=turn)
        prefixes.hold(lane, list(talks[name]))


def test_the_same_prompt_again_computes_its_last_two_tokens():
    prefixes = Prefixes(CHUNK)
    held(prefixes, 0, text(100))
    assert prefixes.place(text(100), [0]).count == 98


@pytest.mark.parametrize(
    ("shared", "rest", "count"), [(63, 70, 63), (64, 70, 64), (64, 1, 63), (70, 1, 69), (70, 2, 70), (127, 1, 126)]
)
def test_no_row_of_one_token_is_left_where_a_whole_prompt_has_none(shared, rest, count):
    prefixes = Prefixes(CHUNK)
    held(prefixes, 0, text(shared))
    assert prefixes.place([*text(shared), *text(rest, salt=1)], [0]).count == count


def test_a_few_tokens_in_common_are_computed_again():
    prefixes = Prefixes(CHUNK)
    held(prefixes, 0, [*text(MIN_REUSE - 1), *text(50, salt=1)])
    assert prefixes.place(text(80), [0]) == Place(0)


def test_a_busy_slot_is_copied_as_far_as_it_was_computed():
    prefixes = Prefixes(CHUNK)
    running = held(prefixes, 0, text(200), sent=150, prompt=100)
    assert prefixes.place(text(180), [1, 2]) == Place(1, 150, moves=(Move(0, 1, 150),))
    running.sent = 160
    assert prefixes.place(text(180), [1, 2]) == Place(1, 160, moves=(Move(0, 1, 160),))


def test_a_conversation_of_which_less_than_half_is_shared_is_kept():
    prefixes = Prefixes(CHUNK)
    held(prefixes, 0, text(200), served=1)
    branch = [*text(60), *text(60, salt=2)]
    assert prefixes.place(branch, [0, 1]) == Place(0, 60, moves=(Move(0, 1, 200),))
    assert prefixes.place([*text(200), 1, 2], [1]) == Place(1, 200)


def test_what_is_not_worth_a_move_or_has_no_place_is_given_up():
    prefixes = Prefixes(CHUNK)
    held(prefixes, 0, text(MIN_REUSE - 1))
    assert prefixes.place(text(80, salt=5), [0, 1]) == Place(0)
    held(prefixes, 0, text(50), served=1)
    held(prefixes, 1, text(50, salt=1), served=2)
    assert prefixes.place(text(80, salt=5), [0, 1]) == Place(0)
    assert prefixes.place(text(80, salt=5), [0]) == Place(0)


def test_what_a_lane_spoilt_is_forgotten():
    prefixes = Prefixes(CHUNK)
    held(prefixes, 0, text(50))
    prefixes.forget(0)
    assert prefixes.place([*text(50), 1, 2], [0]) == Place(0)


def test_a_prompt_waits_for_another_one_that_begins_like_it_and_goes_on_from_there():
    prefixes = Prefixes(CHUNK)
    running = held(prefixes, 0, text(500), sent=64)
    assert prefixes.place(text(500), [1]) is None
    running.sent = 448
    assert prefixes.place(text(500), [1]) == Place(1, 448, moves=(Move(0, 1, 448),))
    running.sent = 500
    assert prefixes.place(text(500), [1]) == Place(1, 498, moves=(Move(0, 1, 498),))


def test_nobody_waits_for_less_than_a_chunk_nor_for_what_is_only_alike():
    prefixes = Prefixes(CHUNK)
    held(prefixes, 0, [*text(40), *text(300, salt=1)], sent=0)
    assert prefixes.place(text(500), [1]) == Place(1)


def test_exact_reuse_leaves_out_what_decode_steps_made():
    prefixes = Prefixes(CHUNK)
    held(prefixes, 0, text(200), prompt=120, exact=120)
    turn = [*text(200), *text(30, salt=1)]
    assert prefixes.place(turn, [0]) == Place(0, 200, exact=120)
    assert prefixes.place(turn, [0], exact=True) == Place(0, 120, exact=120)
    strict = Prefixes(CHUNK, Reuse.PROMPTS)
    held(strict, 0, text(200), prompt=120, exact=120)
    assert strict.place(turn, [0]) == Place(0, 120, exact=120)


def test_switched_off_nothing_is_held():
    prefixes = Prefixes(CHUNK, Reuse.OFF)
    held(prefixes, 0, text(200))
    assert prefixes.place(text(200), [0, 1]) == Place(0)


@given(data=st.data())
def test_common_is_where_two_texts_part(data):
    length = data.draw(st.integers(0, 3 * COMPARED))
    limit = data.draw(st.integers(-1, length))
    at = data.draw(st.integers(0, length))
    one = text(length)
    other = one[:at] + [-1] * (length - at)
    assert common(one, other, limit) == max(0, min(at, limit))
