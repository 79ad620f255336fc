"""Two hundred streams at once on one machine: they queue in their order, all end, and every figure is right."""

from __future__ import annotations

import asyncio
import re

import pytest

from hyperlane.testing.crowd import Asked, End, Way, crowd
from hyperlane.testing.program import Program
from hyperlane.testing.tiny_models import write_tiny_model

CLIENTS, SLOTS = 200, 8

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load")
    model = str(write_tiny_model(folder / "tiny.gguf", context=512))
    environ = {"HYPERLANE_SERVE_QUEUE": str(CLIENTS - SLOTS), "HYPERLANE_SERVE_SLOTS": str(SLOTS)}
    arguments = ("serve", model, "--local-workers", "2", "--port", "0", "--no-join")
    with Program(*arguments, home=folder, environ=environ) as head:
        yield re.search(r"http://\S+?(?=/v1)", head.wait_for("ready: "))[0]


def test_streams_are_served_in_the_order_in_which_they_came(url):
    seen = asyncio.run(crowd(url, Asked("tiny", gap_s=0.02), [Way.READS] * CLIENTS))
    assert seen.ends == {End.LENGTH: CLIENTS}
    assert seen.overtaken() <= 2 * SLOTS
    assert seen.wrong_figures() == []


def test_streams_that_are_left_or_out_of_time_end_and_are_counted_beside_the_others(url):
    ways = [(Way.LEAVES, Way.HURRIES)[at % 2] if at % 10 < 2 else Way.READS for at in range(CLIENTS)]
    seen = asyncio.run(crowd(url, Asked("tiny", hurried_s=0.01), ways))
    assert seen.ends[End.LENGTH] >= CLIENTS * 8 // 10
    assert (seen.ends[End.CANCELLED], seen.ends[End.LOST]) == (CLIENTS // 10, 0)
    assert seen.ends[End.DEADLINE] > 0
    assert seen.wrong_figures() == []


def test_what_the_queue_does_not_hold_is_refused_and_served_when_it_tries_again(url):
    at_once = asyncio.run(crowd(url, Asked("tiny"), [Way.READS] * (CLIENTS + 50)))
    assert at_once.ends[End.LENGTH] + at_once.ends[End.REFUSED] == CLIENTS + 50
    assert at_once.ends[End.REFUSED] > 0
    assert all(one.retry_after_s >= 1.0 for one in at_once.seen if one.end is End.REFUSED)
    assert at_once.wrong_figures() == []
    again = asyncio.run(crowd(url, Asked("tiny", retries=20), [Way.READS] * (CLIENTS + 50)))
    assert again.ends == {End.LENGTH: CLIENTS + 50}
    assert again.wrong_figures() == []
