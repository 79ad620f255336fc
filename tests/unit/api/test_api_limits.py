"""What one key may use: buckets that fill up, answers at once, and what clients are told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlane.api.limits import Account, Bucket, KeyExhausted, KeyLimits, Limit


def refused(account: Account, now_s: float, answers: int = 1, tokens: int = 1) -> KeyExhausted:
    with pytest.raises(KeyExhausted) as error:
        account.admit(answers, tokens, now_s)
    return error.value


def test_a_bucket_without_a_limit_is_never_waited_for():
    bucket = Bucket(None)
    bucket.take(1 << 40)
    assert bucket.wait_s(1 << 40, 0.0) == 0.0


def test_a_bucket_starts_full_and_fills_up_in_a_minute():
    bucket = Bucket(60)
    assert bucket.wait_s(60, 0.0) == 0.0
    bucket.take(60)
    assert bucket.wait_s(10, 0.0) == pytest.approx(10.0)
    assert bucket.wait_s(10, 10.0) == 0.0
    assert bucket.wait_s(60, 1000.0) == 0.0
    bucket.take(60)
    assert bucket.wait_s(1, 1000.0) == pytest.approx(1.0)


def test_what_is_more_than_a_minutes_worth_takes_a_full_bucket():
    bucket = Bucket(60)
    assert bucket.wait_s(500, 0.0) == 0.0
    bucket.take(500)
    assert bucket.wait_s(500, 0.0) == pytest.approx(500.0)


@given(
    st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 30), st.integers(1, 2000)), max_size=20), st.integers(1, 2000)
)
def test_after_the_wait_that_was_said_there_is_enough(per_minute, uses, amount):
    bucket, now_s = Bucket(per_minute), 0.0
    for passed_s, used in uses:
        now_s += passed_s
        bucket.wait_s(1, now_s)
        bucket.take(used)
    wait_s = bucket.wait_s(amount, now_s)
    assert bucket.wait_s(amount, now_s + wait_s) == pytest.approx(0.0, abs=1e-6)


def test_answers_at_once_are_bounded_and_free_when_they_end():
    account = Account("anna", KeyLimits(concurrent=3))
    account.admit(2, 5, 0.0)
    error = refused(account, 1.0, answers=2)
    assert (error.limit, account.running) == (Limit.CONCURRENT, 2)
    account.ended(2.0)
    account.admit(2, 5, 2.0)
    assert account.running == 3
    assert account.refused == {Limit.CONCURRENT: 1}


def test_who_asks_for_more_at_once_than_is_ever_allowed_is_told_no_time():
    error = refused(Account("anna", KeyLimits(concurrent=3)), 0.0, answers=4)
    assert error.retry_after_s == 0.0
    assert "ask for fewer" in str(error)


def test_the_wait_for_an_answers_end_comes_from_how_fast_the_keys_answers_end():
    account = Account("anna", KeyLimits(concurrent=1))
    for number in range(4):
        account.admit(1, 1, number * 6.0)
        account.ended(number * 6.0 + 6.0)
    account.admit(1, 1, 24.0)
    assert refused(account, 24.0).retry_after_s == pytest.approx(6.0)


def test_requests_of_a_minute_are_bounded():
    account = Account("anna", KeyLimits(requests_per_minute=2))
    account.admit(1, 1, 0.0)
    account.admit(1, 1, 0.0)
    assert refused(account, 0.0).limit is Limit.REQUESTS
    assert refused(account, 10.0).retry_after_s == pytest.approx(20.0)
    account.admit(1, 1, 30.0)


def test_an_answer_that_has_begun_is_waited_for_by_the_next_request():
    account = Account("anna", KeyLimits(tokens_per_minute=60))
    account.admit(1, 10, 0.0)
    account.spend(110)
    error = refused(account, 0.0, tokens=10)
    assert (error.limit, account.tokens) == (Limit.TOKENS, 120)
    assert error.retry_after_s == pytest.approx(70.0)
    account.admit(1, 10, 70.0)


def test_a_refused_request_uses_nothing_up():
    account = Account("anna", KeyLimits(1, 10, 100))
    account.admit(1, 50, 0.0)
    for _ in range(20):
        refused(account, 0.0, tokens=50)
    account.ended(0.0)
    account.admit(1, 50, 0.0)
    assert (account.requests, account.tokens) == (2, 100)


def test_a_request_that_was_not_taken_on_is_given_back():
    account = Account("anna", KeyLimits(1, 1, 50))
    account.admit(1, 50, 0.0)
    account.give_back(1, 50)
    account.admit(1, 50, 0.0)
    assert (account.running, account.requests, account.tokens) == (1, 1, 50)


def test_other_limits_hold_from_now_on_and_what_was_used_stays_used():
    account = Account("anna", KeyLimits(tokens_per_minute=100))
    account.admit(1, 100, 0.0)
    account.change(KeyLimits(tokens_per_minute=200))
    account.admit(1, 100, 0.0)
    assert refused(account, 0.0, tokens=10).retry_after_s == pytest.approx(3.0)
    account.change(KeyLimits())
    account.admit(1, 1 << 30, 0.0)
