"""From a checked body to the sequences that the head is asked for: sampling, seeds, stops, limits."""

from __future__ import annotations

from collections.abc import Sequence

from hyperlane.api.schema import MAX_SEQUENCES, GenerationFields
from hyperlane.core import GenerationRequest, SamplingParams
from hyperlane.errors import InvalidRequest

GREEDY_BELOW = 1e-3
"""Temperatures below this count as 0: dividing logits by them would leave the range of float32."""

_SEEDS = 2**64
_GOLDEN = 0x9E3779B97F4A7C15


def sequences(
    body: GenerationFields,
    prompts: Sequence[tuple[int, ...]],
    request_id: str,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    timeout_s: float | None,
) -> list[GenerationRequest]:
    """`n` sequences for each prompt, those of a prompt beside each other, in the order of the choices.

    Raises:
        InvalidRequest: more sequences than one request may have, or options that need another option.

    """
    n = body.n or 1
    if n * len(prompts) > MAX_SEQUENCES:
        message = f"{len(prompts)} prompts times n = {n} are more than {MAX_SEQUENCES} sequences."
        raise InvalidRequest(message, param="n", code="invalid_value")
    if body.stream_options is not None and not body.stream:
        message = "'stream_options' is only allowed when 'stream' is true."
        raise InvalidRequest(message, param="stream_options", code="invalid_value")
    samplings = [_sampling(body, logprobs, derived_seed(body.seed, choice)) for choice in range(n)]
    return [
        GenerationRequest(
            request_id=f"{request_id}-{index * n + choice}",
            prompt=prompt,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=tuple(body.stop or ()),
            ignore_eos=bool(body.ignore_eos),
            timeout_s=timeout_s,
        )
        for index, prompt in enumerate(prompts)
        for choice, sampling in enumerate(samplings)
    ]


def derived_seed(seed: int | None, choice: int) -> int | None:
    """The seed of a prompt's n-th choice: the request's own for the first, one far from it for each other.

    The finalizer of splitmix64, so that choice 1 of seed 7 is not choice 0 of seed 8.
    """
    if seed is None or choice == 0:
        return seed
    mixed = (seed + choice * _GOLDEN) % _SEEDS
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % _SEEDS
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % _SEEDS
    return mixed ^ (mixed >> 31)


def _sampling(body: GenerationFields, logprobs: int | None, seed: int | None) -> SamplingParams:
    temperature = 1.0 if body.temperature is None else body.temperature
    top_p = 1.0 if body.top_p is None else body.top_p
    top_k = max(body.top_k or 0, 0)
    if top_p == 0:  # the smallest nucleus is the likeliest token
        top_p, top_k = 1.0, 1
    return SamplingParams(
        temperature=0.0 if temperature < GREEDY_BELOW else temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=body.min_p or 0.0,
        seed=seed,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        logit_bias=tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items()),
        logprobs=logprobs,
    )
