"""The candidate path picks what the whole logits would, or says that it cannot know."""

import math
from collections import Counter

import numpy as np
import pytest

from hyperlane.core import SamplingParams
from hyperlane.errors import EngineFault
from hyperlane.head.penalties import History
from hyperlane.head.sampler import Ask, ask, pick, pick_whole, uniform
from hyperlane.wire.candidates import Candidates

BORDER = 1e-9
"""A draw nearer than this to a border may fall on either side: two orders of the same float64 sums."""


# --- sampling from whole logits as the definition reads, in plain numpy ------------------------------------------


def adjusted_logits(logits, params, prompt, answer):
    out = logits.astype(np.float64)
    for token in {*prompt, *answer}:
        r = params.repetition_penalty
        out[token] = out[token] / r if out[token] > 0 else out[token] * r
    for token in set(answer):
        out[token] -= params.presence_penalty + params.frequency_penalty * answer.count(token)
    for token, bias in params.logit_bias:
        out[token] += bias
    return out


def kept_distribution(logits, params, prompt=(), answer=()):
    """Token ids in descending order and their probabilities after every filter."""
    out = adjusted_logits(logits, params, prompt, answer)
    order = np.lexsort((np.arange(len(out)), -out))
    if params.temperature == 0.0:
        return order[:1], np.ones(1)
    p = np.exp((out[order] - out[order[0]]) / params.temperature)
    p /= p.sum()
    if params.top_k:
        p = p[: params.top_k] / p[: params.top_k].sum()
    if params.top_p < 1.0:
        keep = int(np.searchsorted(np.cumsum(p), params.top_p)) + 1
        p = p[:keep] / p[:keep].sum()
    if params.min_p:
        p = p[p >= params.min_p * p[0]]
        p = p / p.sum()
    return order[: len(p)], p


def reference_pick(logits, params, draw, prompt=(), answer=()):
    """The token, and how far the draw is from the next border of the cumulative distribution."""
    order, p = kept_distribution(logits, params, prompt, answer)
    mass = np.cumsum(p)
    index = min(int(np.searchsorted(mass, draw, side="right")), len(p) - 1)
    return int(order[index]), float(np.min(np.abs(mass[:-1] - draw), initial=1.0))


def reference_logprobs(logits):
    """Log-probabilities of the model itself."""
    wide = logits.astype(np.float64)
    return wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())


# --- what a last stage answers -----------------------------------------------------------------------------------


def answered(logits, asked: Ask) -> Candidates:
    """What a last stage returns for these whole logits, in float32."""
    order = np.argsort(-logits, kind="stable")[: asked.top_k]
    scaled = (logits / np.float32(asked.temperature)).astype(np.float32)
    return Candidates(
        ids=order.tolist(),
        logits=logits[order].tolist(),
        lse=_lse32(logits),
        lse_t=_lse32(scaled),
        extra=logits[list(asked.extra_ids)].tolist() if asked.extra_ids else (),
    )


def _lse32(logits):
    top = logits.max()
    return float(np.float32(top + np.log(np.exp(logits - top).sum(dtype=np.float32))))


def history_of(params, prompt=(), answer=()):
    history = History(params, prompt)
    for token in answer:
        history.add(token)
    return history


def random_logits(rng, vocab):
    logits = rng.normal(0.0, rng.choice([0.5, 2.0, 6.0]), vocab).astype(np.float32)
    if rng.random() < 0.3:
        logits = np.round(logits * 4).astype(np.float32) / 4  # many equal ones
    if rng.random() < 0.3:
        logits[rng.integers(vocab)] += np.float32(12.0)
    return logits


def random_params(rng):
    biases = rng.choice([-100.0, -2.0, 3.0, 100.0], 2).tolist()

    def maybe(value, default, share=0.4):
        return value if rng.random() < share else default

    return SamplingParams(
        temperature=maybe(0.0, float(rng.choice([0.05, 0.3, 0.7, 1.0, 1.5])), 0.2),
        top_k=maybe(int(rng.choice([1, 5, 40, 64, 100, 5000])), 0),
        top_p=maybe(float(rng.choice([0.05, 0.5, 0.9, 0.999])), 1.0),
        min_p=maybe(float(rng.choice([0.01, 0.1, 0.9, 1.0])), 0.0),
        presence_penalty=maybe(float(rng.choice([-1.5, 0.5, 2.0])), 0.0),
        frequency_penalty=maybe(float(rng.choice([-0.5, 0.3])), 0.0),
        repetition_penalty=maybe(float(rng.choice([0.8, 1.1, 1.5])), 1.0),
        logit_bias=maybe(tuple(zip(rng.choice(50, 2, replace=False).tolist(), biases, strict=True)), ()),
    )


@pytest.mark.parametrize("seed", range(8))
def test_candidates_give_exactly_the_token_that_whole_logits_give(seed):
    rng = np.random.default_rng(seed)
    decided = 0
    for _ in range(500):
        vocab = int(rng.choice([50, 100, 700]))
        logits = random_logits(rng, vocab)
        params = random_params(rng)
        prompt, answer = rng.integers(0, vocab, 8).tolist(), rng.integers(0, vocab, 5).tolist()
        history = history_of(params, prompt, answer)
        draw = float(rng.random())
        expected, distance = reference_pick(logits, params, draw, prompt, answer)
        asked = ask(params, history, vocab)
        if distance < BORDER:
            continue
        choice = pick(answered(logits, asked), asked.extra_ids, params, history, draw=draw, vocab=vocab)
        assert pick_whole(logits, params, history, draw).token == expected, (params, draw)
        assert choice is None or choice.token == expected, (params, draw)
        decided += choice is not None
    assert decided > 250


@pytest.mark.parametrize("temperature", [0.02, 0.5, 1.0, 2.0])
def test_a_draw_within_the_candidates_is_decided_and_one_beyond_asks_again(temperature):
    rng = np.random.default_rng(7)
    logits = rng.normal(0.0, 3.0, 5000).astype(np.float32)
    params = SamplingParams(temperature=temperature)
    history = History(params)
    asked = ask(params, history, 5000)
    found = answered(logits, asked)
    _, p = kept_distribution(logits, params)
    mass = float(np.cumsum(p)[asked.top_k - 1])
    for draw in rng.random(500):
        choice = pick(found, (), params, history, draw=draw, vocab=5000)
        if draw < mass - 1e-4:
            expected, distance = reference_pick(logits, params, draw)
            assert (choice is None and distance < 1e-4) or choice.token == expected
        elif draw > mass + 1e-4:
            assert choice is None


def test_whole_logits_of_a_real_vocabulary_give_the_reference_token():
    rng = np.random.default_rng(3)
    for params in (SamplingParams(), SamplingParams(temperature=1.7), SamplingParams(top_k=3000, top_p=0.97)):
        logits = rng.normal(0.0, 2.0, 49_152).astype(np.float32)
        for draw in (0.01, 0.5, 0.9, 0.99, 0.999999):
            assert pick_whole(logits, params, History(params), draw).token == reference_pick(logits, params, draw)[0]


def test_samples_follow_the_distribution():
    rng = np.random.default_rng(5)
    logits = rng.normal(0.0, 1.5, 40).astype(np.float32)
    params = SamplingParams(temperature=0.8, top_p=0.9, min_p=0.02)
    history = History(params)
    asked = ask(params, history, 40)
    found = answered(logits, asked)
    count = 20_000
    picks = Counter(pick(found, (), params, history, draw=uniform(1, i), vocab=40).token for i in range(count))
    order, p = kept_distribution(logits, params)
    assert set(picks) <= set(order.tolist())
    for token, share in zip(order.tolist(), p, strict=True):
        assert abs(picks[token] / count - share) < 5 * math.sqrt(share / count)


def test_the_draw_depends_on_seed_and_position_alone():
    assert uniform(1, 5) == uniform(1, 5)
    draws = [uniform(seed, position) for seed in range(50) for position in range(50)]
    assert len(set(draws)) == len(draws)
    assert all(0.0 <= draw < 1.0 for draw in draws)
    assert abs(sum(draws) / len(draws) - 0.5) < 0.03
    assert uniform(-1, 0) == uniform((1 << 64) - 1, 0)
    assert uniform(1, 0) == 0.6487508310490744  # as published: the same seed gives the same text in every release


def test_greedy_takes_the_lower_id_of_equal_logits():
    logits = np.zeros(100, np.float32)
    params = SamplingParams(temperature=0.0)
    asked = ask(params, History(params), 100)
    assert pick(answered(logits, asked), (), params, History(params), draw=0.9, vocab=100).token == 0


def test_greedy_with_lowering_penalties_asks_for_nothing_beside_the_candidates():
    params = SamplingParams(temperature=0.0, frequency_penalty=1.0, repetition_penalty=1.3, logit_bias=((3, -5.0),))
    assert ask(params, history_of(params, range(2000), range(50)), 5000) == Ask()
    raising = SamplingParams(temperature=0.0, logit_bias=((3, 5.0),))
    assert ask(raising, History(raising), 5000).extra_ids == (3,)


def test_greedy_asks_again_when_every_candidate_was_pushed_below_the_last_one():
    logits = np.linspace(10.0, 9.0, 100, dtype=np.float32)
    params = SamplingParams(temperature=0.0, logit_bias=tuple((token, -50.0) for token in range(64)))
    history = History(params)
    asked = ask(params, history, 100)
    assert pick(answered(logits, asked), asked.extra_ids, params, history, draw=0.0, vocab=100) is None
    assert pick_whole(logits, params, history, 0.0).token == 64


def test_too_many_touched_tokens_ask_for_whole_logits():
    params = SamplingParams(repetition_penalty=1.2)
    assert ask(params, history_of(params, range(2000)), 5000).whole_logits
    assert ask(params, history_of(params, range(20)), 5000).extra_ids == tuple(range(20))


def test_more_candidates_are_asked_for_a_large_top_k():
    assert ask(SamplingParams(top_k=100), History(SamplingParams()), 5000).top_k == 100
    assert ask(SamplingParams(top_k=9999), History(SamplingParams()), 50_000).top_k == 256
    assert ask(SamplingParams(top_k=100), History(SamplingParams()), 30).top_k == 30


def test_logprobs_are_the_models_own_before_penalties_and_temperature():
    rng = np.random.default_rng(2)
    logits = rng.normal(0.0, 3.0, 300).astype(np.float32)
    params = SamplingParams(temperature=0.4, logit_bias=((250, 100.0),), logprobs=3)
    history = History(params)
    asked = ask(params, history, 300)
    expected = reference_logprobs(logits)
    for choice in (
        pick(answered(logits, asked), asked.extra_ids, params, history, draw=0.5, vocab=300),
        pick_whole(logits, params, history, 0.5),
    ):
        assert choice.token == 250
        assert choice.logprob == pytest.approx(expected[250], abs=1e-5)
        assert [token for token, _ in choice.top] == np.argsort(-logits)[:3].tolist()
        assert [value for _, value in choice.top] == pytest.approx(np.sort(expected)[::-1][:3], abs=1e-5)


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.0)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_a_fault(params, value):
    history = History(params)
    logits = np.zeros(300, np.float32)
    found = answered(logits, ask(params, history, 300))
    broken = Candidates(found.ids, found.logits, value, found.lse_t, found.extra)
    with pytest.raises(EngineFault):
        pick(broken, (), params, history, draw=0.5, vocab=300)
    logits[7] = value
    with pytest.raises(EngineFault):
        pick_whole(logits, params, history, 0.5)


def test_penalties_count_prompt_and_answer_as_defined():
    params = SamplingParams(
        repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((9, 1.0),)
    )
    history = history_of(params, (1, 2), (2, 3, 3))
    assert history.touched == (9, 1, 2, 3)
    assert history.adjust(1, 4.0) == 2.0
    assert history.adjust(2, -4.0) == -8.0 - 0.5 - 0.25
    assert history.adjust(3, 4.0) == 2.0 - 0.5 - 0.5
    assert history.adjust(9, 4.0) == 5.0
    assert history.adjust(7, 4.0) == 4.0
