"""What requests may look like: pydantic models, with ranges and meanings. The only place that imports pydantic's types.

Knows how a request reads, not what is done with it. Unknown fields are ignored; types are strict (no "0.5" for 0.5).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
MAX_BIASES = 300
MAX_SEQUENCES = 128
"""The most sequences that one request may ask for: prompts times `n`."""

MAX_LOGPROBS = 20


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _text_as_part(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _token_ids(value: dict[str, float]) -> dict[str, float]:
    for key in value:
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise PydanticCustomError("logit_bias_key", "keys must be token ids as decimal texts")
    return value


def _prompts(value: object) -> list[str] | list[list[int]]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value
        if _is_token_list(value):
            return [value]
        if all(isinstance(item, list) and _is_token_list(item) for item in value):
            return value
    raise PydanticCustomError(
        "prompt_type", "a text, a list of texts, a list of token ids or a list of such lists is wanted, not empty"
    )


def _is_token_list(value: list[object]) -> bool:
    return bool(value) and all(type(item) is int for item in value)


_ONE_OR_MANY_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}

Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[
    list[Stop],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_one_or_many),
    WithJsonSchema(_ONE_OR_MANY_SCHEMA),
]
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[dict[str, Bias], AfterValidator(_token_ids)]
Prompts = Annotated[list[str] | list[list[int]], BeforeValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class StreamOptions(_Model):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(None, description="send token counts in a last chunk without choices")


class ContentPart(_Model):
    """A part of a message's content. Only `text` parts can be answered."""

    type: str
    text: str | None = None


Content = Annotated[list[ContentPart], BeforeValidator(_text_as_part), Field(min_length=1)]


class Message(_Model):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    tool_calls: list[object] | None = None
    function_call: object = None


class GenerationFields(_Model):
    """What both generating endpoints understand."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_SEQUENCES, description="independent answers to each prompt (default 1)")
    max_tokens: int | None = Field(None, ge=1, description="the most tokens of an answer")
    stop: Stops | None = Field(None, description=f"texts that end the answer; at most {MAX_STOPS}")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="makes sampling repeatable")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy (default 1)")
    top_p: float | None = Field(None, ge=0, le=1, description="nucleus; 1 is off (default)")
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1, description="0 and -1 are off (default)")
    min_p: float | None = Field(None, ge=0, le=1, description="0 is off (default)")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, description="1 is off (default)")
    logit_bias: Biases | None = Field(None, max_length=MAX_BIASES, description="token id to bias")
    ignore_eos: bool | None = Field(None, description="do not end at the model's end token")
    timeout_s: float | None = Field(None, gt=0, description="seconds until the answer must be complete")


class ChatRequest(GenerationFields):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="the same as max_tokens, and before it")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="needs logprobs")


class CompletionRequest(GenerationFields):
    """Body of POST /v1/completions."""

    prompt: Prompts
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="how many alternatives to report")
    best_of: int | None = Field(None, description="refused unless equal to n")
