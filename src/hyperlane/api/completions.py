"""POST /v1/completions: plain text or token ids in, their continuation out, streamed or whole."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hyperlane.api.answers import Tally
from hyperlane.api.auth import account_of
from hyperlane.api.body import read_body, timeout_of
from hyperlane.api.chunks import Envelope, Identity, JsonObject, quoted, usage_object
from hyperlane.api.edge import Edge
from hyperlane.api.errors import with_param
from hyperlane.api.logprobs import TextLogprobs
from hyperlane.api.respond import Choice, StreamedAnswer, whole_answer
from hyperlane.api.schema import CompletionRequest
from hyperlane.api.sequences import sequences
from hyperlane.core import FinishReason, TextDelta, Usage
from hyperlane.errors import InvalidRequest

DEFAULT_MAX_TOKENS = 16
"""As in the OpenAI API: a plain text has no end of its own."""


async def create_completion(edge: Edge, request: Request) -> Response:
    """Answer one request. Errors are raised as `hyperlane.errors`."""
    body = await read_body(request, CompletionRequest, edge.config.max_body)
    edge.check_model(body.model)
    _check_best_of(body)
    prompts = await edge.encoded(lambda: _prompts(edge, body), _characters(body))
    identity = edge.identify("cmpl")
    timeout_s = timeout_of(request, body.timeout_s, edge.config.request_timeout_s)
    max_tokens = body.max_tokens or DEFAULT_MAX_TOKENS
    requests = sequences(body, prompts, identity.id, max_tokens=max_tokens, logprobs=body.logprobs, timeout_s=timeout_s)
    try:
        answers = edge.submit(requests, account_of(request.scope))
    except InvalidRequest as error:
        raise with_param(error, {"messages": "prompt", "top_logprobs": "logprobs"}) from None
    tally = Tally(body.n or 1)
    if body.stream:
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        chunks = TextChunks(identity, len(answers), body.logprobs, include_usage=include_usage)
        return StreamedAnswer(answers, chunks, tally)
    choices, usage = await whole_answer(answers, tally, request.receive)
    return JSONResponse(_whole(identity, choices, usage, body.logprobs))


def _check_best_of(body: CompletionRequest) -> None:
    if body.best_of is not None and body.best_of != (body.n or 1):
        message = "'best_of' is not supported unless it equals 'n'."
        raise InvalidRequest(message, param="best_of", code="unsupported_parameter")


def _prompts(edge: Edge, body: CompletionRequest) -> list[tuple[int, ...]]:
    return [edge.generator.encode(prompt) if isinstance(prompt, str) else tuple(prompt) for prompt in body.prompt]


def _characters(body: CompletionRequest) -> int:
    return sum(len(prompt) for prompt in body.prompt if isinstance(prompt, str))


class TextChunks:
    """The events of a streamed completion (`chunks.Chunks`)."""

    def __init__(self, identity: Identity, choices: int, logprobs: int | None, *, include_usage: bool) -> None:
        self._envelope = Envelope(identity, "text_completion", include_usage=include_usage)
        self._logprobs = [TextLogprobs(logprobs or 0) for _ in range(choices)]
        self._before = [self._envelope.before + b'{"index": %d, "text": ' % index for index in range(choices)]
        self._after = b', "logprobs": null, "finish_reason": null}' + self._envelope.after

    def opening(self) -> bytes:
        return b""

    def piece(self, index: int, delta: TextDelta) -> bytes:
        if delta.logprobs:
            logprobs = self._logprobs[index].take(delta.logprobs)
            return self._envelope.wrap(_choice(index, delta.text, logprobs, None))
        return self._before[index] + quoted(delta.text) + self._after

    def closing(self, index: int, reason: FinishReason) -> bytes:
        return self._envelope.wrap(_choice(index, "", None, reason))

    def ending(self, usage: Usage) -> bytes:
        return self._envelope.ending(usage)


def _choice(index: int, text: str, logprobs: JsonObject | None, reason: FinishReason | None) -> JsonObject:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _whole(identity: Identity, choices: Sequence[Choice], usage: Usage, logprobs: int | None) -> JsonObject:
    return {
        **identity.fields("text_completion"),
        "choices": [
            _choice(
                index,
                choice.text,
                None if logprobs is None else TextLogprobs(logprobs).take(choice.logprobs),
                choice.reason,
            )
            for index, choice in enumerate(choices)
        ],
        "usage": usage_object(usage),
    }
