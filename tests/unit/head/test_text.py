"""Text that is shown: whole characters, stop strings across token borders, tokens beside their text."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlane.core import TokenChoice, TokenLogprob
from hyperlane.head.text import TextAssembler


def assemble(pieces, stops=(), choices=None):
    """Push every piece as one token; returns the deltas until the stop."""
    assembler = TextAssembler(lambda token: pieces[token], stops)
    deltas = []
    for token in range(len(pieces)):
        deltas.append(assembler.push(token, choices[token] if choices else None))
        if assembler.stopped:
            return [delta for delta in deltas if delta], True
    deltas.append(assembler.finish())
    return [delta for delta in deltas if delta], assembler.stopped


def shown(deltas):
    return "".join(delta.text for delta in deltas)


def expected(text, stops):
    """The rule itself: the stop string that is complete first, and of those the one that begins first."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return text[: min(ends)[1]] if ends else text


def cut(data, borders):
    edges = [0, *sorted({border % (len(data) + 1) for border in borders}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def test_a_character_is_shown_when_its_last_byte_is_there():
    deltas, _ = assemble([b"a", b"\xe2", b"\x82", b"\xac", b"b"])
    assert [(delta.text, delta.tokens) for delta in deltas] == [("a", (0,)), ("€", (1, 2, 3)), ("b", (4,))]


def test_an_unfinished_character_becomes_a_replacement_at_the_end():
    deltas, _ = assemble([b"a", b"\xe2\x82"])
    assert shown(deltas) == "a\ufffd"
    assert [token for delta in deltas for token in delta.tokens] == [0, 1]


def test_a_token_without_text_is_let_go_at_once():
    deltas, _ = assemble([b"a", b"", b"b"])
    assert [delta.tokens for delta in deltas] == [(0,), (1,), (2,)]


def test_the_beginning_of_a_stop_string_is_held_back_and_shown_when_it_is_none():
    assembler = TextAssembler(lambda token: bytes([token]), ("END",))
    assert assembler.push(ord("x")).text == "x"
    assert assembler.push(ord("E")) is None
    assert assembler.push(ord("N")) is None
    delta = assembler.push(ord("!"))
    assert (delta.text, delta.tokens) == ("EN!", (ord("E"), ord("N"), ord("!")))
    assert not assembler.stopped


def test_a_stop_string_and_its_tokens_are_never_shown():
    choices = [TokenChoice(TokenLogprob(token, b"", -1.0), ()) for token in range(4)]
    deltas, stopped = assemble([b"go", b"od E", b"N", b"D more"], ("END",), choices)
    assert stopped
    assert shown(deltas) == "good "
    assert [token for delta in deltas for token in delta.tokens] == [0]
    assert [choice.chosen.token for delta in deltas for choice in delta.logprobs] == [0]


def test_what_was_held_is_shown_when_the_answer_ends():
    deltas, stopped = assemble([b"abc", b"EN"], ("END",))
    assert not stopped
    assert shown(deltas) == "abcEN"


@pytest.mark.parametrize(("stops", "left"), [(("bcd", "c"), "ab"), (("c", "bc"), "a"), (("d", "abcdef"), "abc")])
def test_the_stop_string_that_is_complete_first_decides(stops, left):
    deltas, _ = assemble([b"abcdef"], stops)
    assert shown(deltas) == left


@given(
    text=st.text("ab€é\n", max_size=30),
    stops=st.lists(st.text("ab€\n", min_size=1, max_size=4), max_size=3),
    borders=st.lists(st.integers(0, 200), max_size=20),
)
def test_token_borders_change_nothing(text, stops, borders):
    pieces = cut(text.encode(), borders)
    deltas, stopped = assemble(pieces, stops)
    assert shown(deltas) == expected(text, stops)
    assert stopped == any(stop in text for stop in stops)
    tokens = [token for delta in deltas for token in delta.tokens]
    assert tokens == list(range(len(tokens)))
    if not stopped:
        assert tokens == list(range(len(pieces)))


@given(data=st.binary(max_size=24), borders=st.lists(st.integers(0, 200), max_size=12))
def test_any_bytes_decode_as_they_do_in_one_piece(data, borders):
    deltas, _ = assemble(cut(data, borders))
    assert shown(deltas) == data.decode(errors="replace")
