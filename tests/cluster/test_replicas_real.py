"""The real engine in two pipelines of one worker each: when one is killed in mid-stream the other goes on for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hyperlane.config import ServeConfig, load
from hyperlane.core import EventStream, GenerationRequest, SamplingParams
from hyperlane.node import Serving, start_serving
from hyperlane.testing.toy_cluster import rest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_is_left")]

PROMPTS = ("Tell me a story about a lighthouse.", "Why is the sky blue?")
TOKENS = 120


@pytest.fixture
def serving(smollm2_path: Path) -> Iterator[Serving]:
    settings = {"local_workers": 2, "replicas": 2, "threads": 1, "context": 512, "slots": 2, "prefix_cache": "off"}
    with start_serving(load(ServeConfig, model=str(smollm2_path), **settings)) as serving:
        yield serving


def asked(serving: Serving, prompt: str) -> EventStream:
    params, tokens = SamplingParams(temperature=0.0), tuple(serving.service.encode(prompt))
    return serving.service.submit(GenerationRequest(prompt, tokens, params, max_tokens=TOKENS, ignore_eos=True))


def test_a_greedy_answer_goes_on_with_the_other_pipeline_as_if_nothing_had_been(serving: Serving):
    undisturbed = [rest(asked(serving, prompt)) for prompt in PROMPTS]
    streams = [asked(serving, prompt) for prompt in PROMPTS]
    begun = [list(next(stream).tokens) for stream in streams]
    assert [replica.active for replica in serving.service.status().replicas] == [1, 1]
    port = serving.plans[0].stages[0].worker.control.port
    (pid,) = {one.pid for one in psutil.net_connections("tcp") if one.laddr.port == port and one.status == "LISTEN"}
    psutil.Process(pid).kill()
    assert [tokens + rest(stream) for tokens, stream in zip(begun, streams, strict=True)] == undisturbed
    status = serving.service.status()
    assert (status.losses, status.requests_ended) == (1, 2 * len(PROMPTS))
