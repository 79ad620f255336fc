"""A join token as one word, and what becomes of it in the head's store."""

from __future__ import annotations

import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlane.cluster.trust.token import JoinToken, merge
from hyperlane.cluster.trust.token_store import FORGET_AFTER_S, TokenStore
from hyperlane.core import Address, NodeId
from hyperlane.errors import JoinRefused, NotTrusted, UsageError

PLACES = (Address("192.168.1.10", 7419), Address("fd00::1", 7419), Address("head.local", 65535))
NODE, OTHER = NodeId(b"n" * 16), NodeId(b"o" * 16)
NOW = 1_000_000.0


def token(**changed) -> JoinToken:
    return JoinToken(
        **{"token_id": b"i" * 8, "secret": b"s" * 16, "fingerprint": b"f" * 32, "addresses": PLACES, **changed}
    )


@pytest.fixture
def store(tmp_path):
    return TokenStore(tmp_path / "tokens.json")


def made(store, uses=1, lifetime_s=60.0, now=NOW) -> JoinToken:
    return store.create(b"f" * 32, PLACES, lifetime_s=lifetime_s, uses=uses, now=now)


# --- the word ----------------------------------------------------------------------------------------------------


def test_a_token_is_one_word_of_letters_and_digits_that_comes_back_whole():
    word = token().encode()
    assert word.isalnum()
    assert word == word.lower()
    assert JoinToken.decode(word) == token()


@pytest.mark.parametrize("change", [str.upper, lambda w: f"  {w}\n", lambda w: w[:40] + "\n  " + w[40:]])
def test_case_white_space_and_broken_lines_do_not_matter(change):
    assert JoinToken.decode(change(token().encode())) == token()


@given(st.data())
def test_any_wrong_character_is_noticed(data):
    word = token().encode()
    at = data.draw(st.integers(3, len(word) - 1))
    other = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567").filter(lambda c: c != word[at]))
    with pytest.raises(JoinRefused, match="wrong or missing"):
        JoinToken.decode(word[:at] + other + word[at + 1 :])


@given(st.integers(3, 150))
def test_a_token_that_was_cut_is_noticed(length):
    word = token().encode()
    with pytest.raises(JoinRefused):
        JoinToken.decode(word[: min(length, len(word) - 1)])


@given(st.text(max_size=300))
def test_any_text_is_refused_in_words(text):
    with pytest.raises(JoinRefused):
        JoinToken.decode(text)


def test_a_token_of_another_version_says_so():
    with pytest.raises(JoinRefused, match="another version"):
        JoinToken.decode("hl2" + token().encode()[3:])


def test_the_secret_is_not_shown_where_a_token_is_logged():
    assert token().secret.hex() not in repr(token())
    assert "ssss" not in repr(token())


@pytest.mark.parametrize("addresses", [(), PLACES * 3, (Address("x" * 256, 1),)])
def test_a_token_without_or_with_too_many_or_too_long_addresses_is_not_made(addresses):
    with pytest.raises(ValueError, match=r"address|long"):
        token(addresses=addresses).encode()


def test_addresses_are_merged_without_repeats_and_no_more_than_fit():
    many = [Address("10.0.0.1", port) for port in range(1, 12)]
    assert merge(many[:2], many) == tuple(many[:8])


# --- the store ---------------------------------------------------------------------------------------------------


def test_a_token_opens_as_often_as_it_was_made_for(store):
    word = made(store, uses=2)
    store.spend(word.token_id, word.secret, NODE, NOW)
    store.spend(word.token_id, word.secret, OTHER, NOW)
    with pytest.raises(JoinRefused, match="used up"):
        store.spend(word.token_id, word.secret, NODE, NOW)
    assert store.all()[0].used_by == (NODE.hex(), OTHER.hex())


def test_a_token_ends_with_its_time(store):
    word = made(store)
    with pytest.raises(JoinRefused, match="expired"):
        store.spend(word.token_id, word.secret, NODE, NOW + 60)


def test_a_revoked_token_opens_nothing(store):
    word = made(store)
    store.revoke(word.token_id.hex()[:6])
    with pytest.raises(JoinRefused, match="revoked"):
        store.verify(word.token_id, word.secret, NOW)


def test_a_wrong_secret_and_an_unknown_id_are_told_the_same(store):
    word = made(store)
    told = []
    for token_id, secret in ((word.token_id, b"x" * 16), (b"?" * 8, word.secret), (b"", b"")):
        with pytest.raises(JoinRefused) as refused:
            store.spend(token_id, secret, NODE, NOW)
        told.append(str(refused.value))
    assert len(set(told)) == 1
    assert store.all()[0].used_by == ()


def test_who_does_not_know_the_secret_does_not_learn_what_became_of_a_token(store):
    word = made(store)
    store.revoke(word.token_id.hex())
    with pytest.raises(JoinRefused, match="not one of this cluster's"):
        store.verify(word.token_id, b"x" * 16, NOW)


def test_the_secret_is_nowhere_on_disk(store, tmp_path):
    word = made(store)
    content = (tmp_path / "tokens.json").read_bytes()
    assert word.secret not in content
    assert word.secret.hex().encode() not in content


def test_two_processes_share_a_store(store, tmp_path):
    word = made(store)
    TokenStore(tmp_path / "tokens.json").spend(word.token_id, word.secret, NODE, NOW)
    with pytest.raises(JoinRefused, match="used up"):
        store.spend(word.token_id, word.secret, NODE, NOW)


def test_a_removed_nodes_tokens_are_taken_back_and_no_others(store):
    known, unknown = made(store, uses=5), made(store, uses=5)
    store.spend(known.token_id, known.secret, NODE, NOW)
    assert [one.token_id for one in store.revoke_used_by(NODE)] == [known.token_id.hex()]
    with pytest.raises(JoinRefused, match="revoked"):
        store.verify(known.token_id, known.secret, NOW)
    store.verify(unknown.token_id, unknown.secret, NOW)


def test_a_token_to_revoke_must_be_named_clearly(store):
    made(store)
    for prefix in ("", "zz"):
        with pytest.raises(UsageError, match="no token"):
            store.revoke(prefix)


def test_tokens_that_ended_long_ago_are_forgotten(store):
    made(store)
    made(store, now=NOW + FORGET_AFTER_S + 61)
    assert len(store.all()) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 1, "entries": [{"uses": 1}]}'])
def test_a_damaged_store_is_named_and_opens_nothing(tmp_path, content):
    file = tmp_path / "tokens.json"
    file.touch(mode=0o600)
    file.write_bytes(content)
    with pytest.raises(NotTrusted, match="damaged"):
        TokenStore(file).verify(b"i" * 8, b"s" * 16, NOW)
    assert file.read_bytes() == content


def test_a_store_of_a_later_version_is_left_alone(tmp_path):
    file = tmp_path / "tokens.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps({"version": 2, "entries": []}))
    with pytest.raises(NotTrusted, match="another version"):
        made(TokenStore(file))


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_the_store_is_for_its_owner_alone(store, tmp_path):
    made(store)
    file = tmp_path / "tokens.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    with pytest.raises(NotTrusted, match="chmod 600"):
        store.all()
