"""Requests and their events, from the edges to the head and back."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is picked; the defaults are the OpenAI API's, `temperature` 0 is greedy.

    `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 switch a filter off. `logit_bias`: (token, bias) pairs.
    `logprobs`: None for none, else how many alternatives to report beside the chosen token (0 … 20).
    `seed`: None draws one; the same seed, request and plan give the same tokens, whatever a slot holds already.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate. `max_tokens` None: until the context is full. `stop`: strings that end the answer.

    `timeout_s`: seconds from its submission until it ends with `DeadlineExceeded`, waiting included; None: none.
    """

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    timeout_s: float | None = None


class FinishReason(enum.StrEnum):
    """Why a request ended without error."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its text's bytes and its log-probability under the model (temperature 1, before penalties)."""

    token: int
    text: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """A generated token's log-probability with the alternatives that were asked for, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer: never half a character, never part of a stop string. `text` may be empty."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request. `cached_tokens`: of the prompt, were in a slot already and not computed again.

    `paused_s`: seconds that it stood still because workers were lost, until its next token each time; never compared.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    paused_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class RequestTimings:
    """Seconds: waiting for a slot, from submission to the first token (TTFT), and from the first token to the last."""

    queued_s: float
    ttft_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request that was served."""

    reason: FinishReason
    usage: Usage
    timings: RequestTimings


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a request that could not be served; `error` is one of `hyperlane.errors`."""

    error: Exception


Event = TextDelta | Finished | Failed


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation. `role`: system, user, assistant or tool."""

    role: str
    content: str


class EventStream(Protocol):
    """The events of one request: any number of `TextDelta`, then exactly one `Finished` or `Failed`, then the end.

    Iterated once, either from a thread or from a coroutine. A reader that stops early calls `cancel`.
    """

    def __iter__(self) -> Iterator[Event]: ...

    def __aiter__(self) -> AsyncIterator[Event]: ...

    def cancel(self) -> None:
        """End the request: its slot is free within one step. From any thread, idempotent."""
        ...
