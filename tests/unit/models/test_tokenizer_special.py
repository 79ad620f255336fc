"""Tokens that are written out in a text."""

from hypothesis import given
from hypothesis import strategies as st

from hyperlane.models.tokenizer_special import LiteralTokens

TOKENS = {"<|a|>": 0, "<|a": 1, "<|ab|>": 2, "\n": 3, "\n\n": 4, "[x]": 5}
MARK = "\ue000"
TEXTS = st.text(st.sampled_from("<|ab>[x]\n "), max_size=30)


def test_the_longest_token_at_the_leftmost_place_wins():
    assert LiteralTokens(TOKENS).split("x<|a|><|ab|><|a\n\n\n[x") == ["x", 0, 2, 1, 4, 3, "[x"]


def test_no_tokens_and_no_text_are_fine():
    assert LiteralTokens({}).split("<|a|>") == ["<|a|>"]
    assert LiteralTokens({}).split("") == []
    assert LiteralTokens(TOKENS).split("") == []
    assert LiteralTokens({}).guard("<|a|>", MARK) == "<|a|>"


@given(TEXTS)
def test_fragments_are_the_text(text):
    names = {token: name for name, token in TOKENS.items()}
    fragments = LiteralTokens(TOKENS).split(text)
    assert "".join(names[part] if isinstance(part, int) else part for part in fragments) == text


@given(TEXTS, TEXTS)
def test_guarded_text_holds_no_token_whatever_follows_it(text, following):
    literals = LiteralTokens({name: token for name, token in TOKENS.items() if len(name) > 1})
    guarded = literals.guard(text, MARK)
    assert guarded.replace(MARK, "") == text
    for shown in (guarded, guarded.strip(), guarded.rstrip() + following, guarded + following):
        begin = len(shown) - len(following) if shown.endswith(following) else len(shown)
        at = 0
        for part in literals.split(shown):
            names = [name for name, token in TOKENS.items() if token == part]
            assert not names or at >= begin
            at += len(names[0]) if names else len(part)


def test_text_that_holds_no_beginning_of_a_token_is_not_touched():
    assert LiteralTokens(TOKENS).guard("a < b | c > d [y]", MARK) == "a < b | c > d [y]"
