"""Picks the next token from what the last stage returned, or says that it takes the whole logits. Pure.

Order of the steps: penalties → bias → temperature → top_k → top_p → min_p → draw. Each filter sees the distribution
that the one before it left, renormalised (as in Transformers; vLLM applies min_p before top_k and top_p, llama.cpp
applies the temperature last). `top_p` keeps the fewest likeliest tokens that hold at least that mass, `min_p` those
of at least that share of the likeliest one's probability. Equal logits rank by token id, the lower one first. A draw
u takes the first token, in descending order, at which the kept mass up to and with it exceeds u of the whole.

Of K candidates everything is known, of the rest only their mass (from the log-sum-exp) and that none exceeds the K-th.
`pick` answers when these bounds leave exactly one token, and None when they do not: then the same position is asked
for whole logits and `pick_whole` decides, with the same draw.
"""

from __future__ import annotations

import hashlib
import math
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hyperlane.core import CANDIDATES_K, SamplingParams
from hyperlane.errors import EngineFault
from hyperlane.head.penalties import History
from hyperlane.wire.candidates import Candidates

Logits = npt.NDArray[np.float32]

GREEDY_BELOW = 1e-3
"""Temperatures under this are greedy: the likeliest token wins unless it is nearer than 0.01 to the next."""

MAX_TOP_K = 256
"""Candidates that a row may ask for: what links agree on by default."""

MAX_EXTRA_IDS = 1024
"""Extra ids that a row may name; beyond, whole logits are asked for."""

FIRST_OF_WHOLE = 1024
"""How many of the whole logits are ranked at first; all of them only when these do not decide."""

_LSE_RELATIVE, _LSE_ABSOLUTE = 2.0**-22, 1e-6
"""How far a stage's float32 log-sum-exp may be off: four roundings of its terms, and the sum's own."""

_LARGEST_GAP = 30.0
"""A tail e^30 times the likeliest token's weight is known only to within its own bounds."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a row must ask for so that the next token can be picked."""

    top_k: int = CANDIDATES_K
    extra_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    whole_logits: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """A picked token. `logprob` and `top` (token, log-probability) are the model's own; only when asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class _Known(NamedTuple):
    """The tokens whose logits are known, in descending order of the adjusted ones."""

    tokens: Sequence[int]
    adjusted: Sequence[float]
    own: Sequence[float]
    """Their logits before penalties and biases, in any order."""
    certain: int
    """How many of them surely rank before every token that is not known."""


class _Ranking(NamedTuple):
    """What surely ranks first, and bounds of all else. Weights are exp((logit - largest logit) / temperature)."""

    weights: list[float]
    others: int
    """How many tokens there are besides."""
    low: float
    """Least and most weight of all others together."""
    high: float
    each: float
    """Most weight of one of them."""


def is_greedy(params: SamplingParams) -> bool:
    """Whether the likeliest token is taken."""
    return params.temperature < GREEDY_BELOW or params.top_k == 1


def uniform(seed: int, position: int) -> float:
    """The draw in [0, 1) for the token at a position: a hash of both, so that batching and retries change nothing."""
    digest = hashlib.blake2b(struct.pack("<Qq", seed & (1 << 64) - 1, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def ask(params: SamplingParams, history: History, vocab: int) -> Ask:
    """What the row for the next token asks. Greedy picks that only lower logits need no extra ids."""
    greedy = is_greedy(params)
    extra_ids = () if greedy and history.lowers else history.touched
    if len(extra_ids) > MAX_EXTRA_IDS:
        return Ask(whole_logits=True, top_k=1)
    top_k = CANDIDATES_K if greedy else min(max(CANDIDATES_K, params.top_k), MAX_TOP_K)
    return Ask(min(top_k, vocab), extra_ids, 1.0 if greedy else params.temperature)


def pick(
    found: Candidates, extra_ids: Sequence[int], params: SamplingParams, history: History, *, draw: float, vocab: int
) -> Choice | None:
    """The next token, or None when it takes the whole logits. `extra_ids`: those that the row named.

    Raises:
        EngineFault: a value is not finite.

    """
    logits = found.logits
    if not (math.isfinite(found.lse) and math.isfinite(found.lse_t) and math.isfinite(logits[0])):
        raise EngineFault("the last stage returned a value that is not finite")
    known = _known(found, extra_ids, history, vocab)
    if not known.certain:
        return None
    index = 0 if is_greedy(params) else _decide(_bounded(known, found.lse_t, logits, params, vocab), params, draw)
    if index is None:
        return None
    token = known.tokens[index]
    if params.logprobs is None:
        return Choice(token)
    own = dict(zip([*extra_ids, *found.ids], [*found.extra, *logits], strict=True))
    best = range(min(params.logprobs, len(logits)))
    return Choice(token, own[token] - found.lse, tuple((found.ids[i], logits[i] - found.lse) for i in best))


def pick_whole(logits: Logits, params: SamplingParams, history: History, draw: float) -> Choice:
    """The next token by whole logits, float32[V]: what `pick` gives wherever it decides.

    Raises:
        EngineFault: a value is not finite.

    """
    adjusted = logits.astype(np.float64)
    if not math.isfinite(adjusted.max()):  # NaN is the maximum of whatever holds one
        raise EngineFault("the last stage returned a value that is not finite")
    own = adjusted.copy() if history.touched else adjusted
    for token in history.touched:
        adjusted[token] = history.adjust(token, float(own[token]))
    token = int(np.argmax(adjusted)) if is_greedy(params) else _draw_whole(adjusted, params, draw)
    if params.logprobs is None:
        return Choice(token)
    lse = float(own.max() + np.log(np.exp(own - own.max()).sum()))
    best = np.argsort(-own, kind="stable")[: params.logprobs].tolist()
    return Choice(token, float(own[token]) - lse, tuple((i, float(own[i]) - lse) for i in best))


def _known(found: Candidates, extra_ids: Sequence[int], history: History, vocab: int) -> _Known:
    logits = found.logits
    if not history.touched:
        return _Known(found.ids, logits, logits, len(logits))
    known = dict(zip(extra_ids, found.extra, strict=True))
    known.update(zip(found.ids, logits, strict=True))
    order = sorted(zip([-logit for logit in history.adjusted(known)], known, strict=True))
    floor = -math.inf if len(known) >= vocab else logits[-1]
    certain = 0
    for negative, token in order:
        if -negative < floor or (-negative == floor and token in history.touched):
            break
        certain += 1
    return _Known([token for _, token in order], [-negative for negative, _ in order], [*known.values()], certain)


def _bounded(known: _Known, lse_t: float, logits: Sequence[float], params: SamplingParams, vocab: int) -> _Ranking:
    """Weights of the certain tokens, and what the log-sum-exp and the last candidate say of the others."""
    scale, peak, certain = 1.0 / params.temperature, known.adjusted[0], known.certain
    weights = [math.exp((logit - peak) * scale) for logit in known.adjusted]
    late = math.fsum(weights[certain:])
    unknown = vocab - len(weights)
    low = high = each = 0.0
    if unknown > 0:
        each = math.exp((logits[-1] - peak) * scale)
        low, high = 0.0, unknown * each
        gap = lse_t - peak * scale
        if gap < _LARGEST_GAP:
            whole = math.exp(gap)
            same = known.own is known.adjusted
            held = math.fsum(weights if same else [math.exp((logit - peak) * scale) for logit in known.own])
            left = whole - held
            error = whole * (_LSE_ABSOLUTE + _LSE_RELATIVE * (abs(lse_t) + abs(logits[0] * scale)))
            low, high = min(max(low, left - error), high), max(min(high, left + error), low)
    each = max([each, *weights[certain : certain + 1]])
    return _Ranking(weights[:certain], vocab - certain, low + late, high + late, each)


def _draw_whole(adjusted: npt.NDArray[np.float64], params: SamplingParams, draw: float) -> int:
    for size in (FIRST_OF_WHOLE, len(adjusted)):
        order, ranking = _rank_whole(adjusted, size, 1.0 / params.temperature)
        index = _decide(ranking, params, draw)
        if index is not None:
            return int(order[index])
    raise AssertionError("all logits are ranked, yet no token was drawn")


def _rank_whole(adjusted: npt.NDArray[np.float64], size: int, scale: float) -> tuple[npt.NDArray[np.intp], _Ranking]:
    """The `size` largest logits (more where the last ones are equal) in descending order, the others as their sum."""
    if size >= len(adjusted):
        order = np.argsort(-adjusted, kind="stable")
        weights = np.exp((adjusted[order] - adjusted[order[0]]) * scale).tolist()
        return order, _Ranking(weights, 0, 0.0, 0.0, 0.0)
    floor = np.partition(adjusted, -size)[-size]
    first = np.flatnonzero(adjusted >= floor)
    order = first[np.argsort(-adjusted[first], kind="stable")]
    every = np.exp((adjusted - adjusted[order[0]]) * scale)
    rest = float(every[adjusted < floor].sum())
    weights = every[order].tolist()
    return order, _Ranking(weights, len(adjusted) - len(order), rest * (1 - 1e-9), rest * (1 + 1e-9), weights[-1])


def _decide(ranking: _Ranking, params: SamplingParams, draw: float) -> int | None:
    """Index of the drawn token, or None when the bounds leave several.

    Tokens before `size` are surely kept, `each` bounds the weight of every one after them that may be (0: none is),
    and the kept mass lies from `low` to `high`.
    """
    weights, each = ranking.weights, ranking.each if ranking.others else 0.0
    mass = list(accumulate(weights))
    size = len(mass)
    low, high = mass[-1] + ranking.low, mass[-1] + ranking.high
    if 0 < params.top_k <= size:
        size, each = params.top_k, 0.0
        low = high = mass[size - 1]
    elif 0 < params.top_k < size + ranking.others:
        low, high = mass[-1], min(high, mass[-1] + (params.top_k - size) * each)
    if params.top_p < 1.0:
        first = bisect_left(mass, params.top_p * low, 0, size)
        if first < size and first == bisect_left(mass, params.top_p * high, 0, size):
            size, each = first + 1, 0.0
            low = high = mass[first]
        else:
            each = weights[first] if first < size else each
            size = min(first + 1, size)
            low, high = max(params.top_p * low, mass[size - 1]), min(high, params.top_p * high + each)
    if params.min_p > 0.0:
        kept = size
        while kept > 1 and weights[kept - 1] < params.min_p:
            kept -= 1
        if kept < size or each < params.min_p:
            high = mass[kept - 1]
        size, low = kept, mass[kept - 1]
    index = bisect_right(mass, draw * low, 0, size)
    return index if index < size and index == bisect_right(mass, draw * high, 0, size) else None
