"""Requests of every sort to the toy model, and all that their readers are told, to be compared."""

from __future__ import annotations

from hyperlane.core import EventStream, Finished, FinishReason, SamplingParams, TextDelta, TokenChoice, Usage
from hyperlane.head.options import HeadOptions
from hyperlane.testing.toy import toy_facts

FACTS = toy_facts()
PATIENT = HeadOptions(max_step_tokens=16, prompt_chunk=8, recovery_timeout_s=60.0)
GREEDY = SamplingParams(temperature=0.0)
ASKED = (
    (b"greedy", GREEDY),
    (b"a longer prompt of several chunks that is seeded", SamplingParams(seed=3)),
    (b"hot: whole logits are asked for", SamplingParams(seed=4, temperature=1.8)),
    (b"17 bytes, no more", SamplingParams(seed=5, temperature=1.8)),
    (b"penalties", SamplingParams(seed=6, presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.2)),
    (b"logprobs", SamplingParams(temperature=0.0, logprobs=2)),
    (b"x", SamplingParams(seed=7, temperature=1.8)),
)

Told = tuple[list[int], str, list[TokenChoice], FinishReason, Usage]
"""Tokens, text, what logprobs say, why it ended, and what it cost."""


def told(stream: EventStream) -> Told:
    """All that a request's reader is told but times; piece by piece or together is the same."""
    *events, last = stream
    deltas = [event for event in events if isinstance(event, TextDelta)]
    assert len(deltas) == len(events)
    assert isinstance(last, Finished), last
    tokens = [token for delta in deltas for token in delta.tokens]
    logprobs = [choice for delta in deltas for choice in delta.logprobs]
    return tokens, "".join(delta.text for delta in deltas), logprobs, last.reason, last.usage
