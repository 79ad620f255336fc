"""Which requests a head accepts: every range of every field, in one pure function. Knows no queue and no pipeline."""

from __future__ import annotations

import math

from hyperlane.core import GenerationRequest, SamplingParams
from hyperlane.errors import ContextLengthExceeded, InvalidRequest

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
MAX_BIASED_TOKENS = 1024
SEED_LIMIT = 1 << 64

_RANGES = (
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("repetition_penalty", 0.01, 100.0),
)


def check_request(request: GenerationRequest, vocab: int, context: int) -> None:
    """Refuse what cannot be served. `vocab`: number of token ids; `context`: tokens a slot holds.

    Raises:
        ContextLengthExceeded: the prompt leaves no room for a token, or prompt and `max_tokens` exceed the context.
        InvalidRequest: another field is out of range; `param` names it.

    """
    _check_tokens(request, vocab)
    _check_length(request, context)
    _check_stops(request.stop)
    _check_timeout(request.timeout_s)
    _check_sampling(request.sampling, vocab)


def _check_tokens(request: GenerationRequest, vocab: int) -> None:
    if not request.prompt:
        raise _invalid("prompt", "the prompt is empty; send at least one token")
    lowest, highest = min(request.prompt), max(request.prompt)
    if lowest < 0 or highest >= vocab:
        wrong = lowest if lowest < 0 else highest
        raise _invalid("prompt", f"token id {wrong} is outside the vocabulary; ids go from 0 to {vocab - 1}")


def _check_timeout(timeout_s: float | None) -> None:
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise _invalid("timeout_s", f"timeout_s is {timeout_s}; give a number of seconds above 0")


def _check_length(request: GenerationRequest, context: int) -> None:
    asked = len(request.prompt)
    if asked >= context:
        raise ContextLengthExceeded(
            f"the prompt has {asked} tokens and leaves no room for an answer in the context of {context} tokens; "
            f"shorten the prompt"
        )
    if request.max_tokens is None:
        return
    if request.max_tokens < 1:
        raise _invalid("max_tokens", f"max_tokens is {request.max_tokens}; ask for at least 1")
    if asked + request.max_tokens > context:
        raise ContextLengthExceeded(
            f"{asked} prompt tokens and max_tokens {request.max_tokens} exceed the context of {context} tokens; "
            f"ask for at most {context - asked}, or shorten the prompt"
        )


def _check_stops(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOPS:
        raise _invalid("stop", f"{len(stops)} stop strings; send at most {MAX_STOPS}")
    if any(not 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise _invalid("stop", f"a stop string is empty or longer than {MAX_STOP_CHARACTERS} characters")


def _check_sampling(params: SamplingParams, vocab: int) -> None:
    for name, low, high in _RANGES:
        value = getattr(params, name)
        if not low <= value <= high:  # false for NaN as well
            raise _invalid(name, f"{name} is {value}; it must lie from {low:g} to {high:g}")
    if params.top_p <= 0.0:
        raise _invalid("top_p", "top_p is 0; it must be greater (for the likeliest token set temperature to 0)")
    if params.top_k < 0:
        raise _invalid("top_k", f"top_k is {params.top_k}; send 0 for all tokens, or a positive number")
    if params.seed is not None and not -SEED_LIMIT // 2 <= params.seed < SEED_LIMIT:
        raise _invalid("seed", f"seed is {params.seed}; it must fit 64 bits")
    if params.logprobs is not None and not 0 <= params.logprobs <= MAX_LOGPROBS:
        raise _invalid("top_logprobs", f"{params.logprobs} alternatives; ask for 0 to {MAX_LOGPROBS}")
    if len(params.logit_bias) > MAX_BIASED_TOKENS:
        raise _invalid("logit_bias", f"{len(params.logit_bias)} entries; send at most {MAX_BIASED_TOKENS}")
    for token, bias in params.logit_bias:
        if not 0 <= token < vocab:
            raise _invalid("logit_bias", f"token id {token} is outside the vocabulary; ids go from 0 to {vocab - 1}")
        if not (math.isfinite(bias) and -100.0 <= bias <= 100.0):
            raise _invalid("logit_bias", f"the bias of token {token} is {bias}; it must lie from -100 to 100")


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")
