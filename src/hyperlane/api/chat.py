"""POST /v1/chat/completions: messages in, one assistant turn out, streamed or whole."""

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
from hyperlane.api.logprobs import chat_logprobs
from hyperlane.api.respond import Choice, StreamedAnswer, whole_answer
from hyperlane.api.schema import ChatRequest, Message
from hyperlane.api.sequences import sequences
from hyperlane.core import ChatMessage, FinishReason, TextDelta, Usage
from hyperlane.errors import InvalidRequest


async def create_chat_completion(edge: Edge, request: Request) -> Response:
    """Answer one request. Errors are raised as `hyperlane.errors`."""
    body = await read_body(request, ChatRequest, edge.config.max_body)
    edge.check_model(body.model)
    logprobs = _logprobs(body)
    messages = [_message(message, index) for index, message in enumerate(body.messages)]
    characters = sum(len(message.content) for message in messages)
    prompt = await edge.encoded(lambda: edge.generator.encode_chat(messages), characters)
    timeout_s = timeout_of(request, body.timeout_s, edge.config.request_timeout_s)
    identity = edge.identify("chatcmpl")
    requests = sequences(
        body, [prompt], identity.id, max_tokens=_max_tokens(body), logprobs=logprobs, timeout_s=timeout_s
    )
    try:
        answers = edge.submit(requests, account_of(request.scope))
    except InvalidRequest as error:
        raise with_param(error, {"prompt": "messages"}) from None
    tally = Tally(len(answers))
    if body.stream:
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        return StreamedAnswer(answers, ChatChunks(identity, len(answers), include_usage=include_usage), tally)
    choices, usage = await whole_answer(answers, tally, request.receive)
    return JSONResponse(_whole(identity, choices, usage, with_logprobs=logprobs is not None))


def _logprobs(body: ChatRequest) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        message = "'top_logprobs' needs 'logprobs' to be true."
        raise InvalidRequest(message, param="top_logprobs", code="invalid_value")
    return None


def _max_tokens(body: ChatRequest) -> int | None:
    return body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens


def _message(message: Message, index: int) -> ChatMessage:
    """A turn as the chat template takes it: `developer` is what newer clients call `system`."""
    place = f"messages[{index}]"
    if message.tool_calls or message.function_call is not None:
        field = "tool_calls" if message.tool_calls else "function_call"
        raise InvalidRequest(
            f"'{field}' in a message is not supported.", param=f"{place}.{field}", code="unsupported_parameter"
        )
    if message.content is None:
        raise InvalidRequest(
            f"'{place}.content' is missing.", param=f"{place}.content", code="missing_required_parameter"
        )
    for number, part in enumerate(message.content):
        if part.type != "text":
            raise InvalidRequest(
                f"A part of type '{part.type}' is not supported; this model reads text.",
                param=f"{place}.content[{number}].type",
                code="unsupported_content_type",
            )
        if part.text is None:
            where = f"{place}.content[{number}].text"
            raise InvalidRequest(f"'{where}' is missing.", param=where, code="missing_required_parameter")
    role = "system" if message.role == "developer" else message.role
    return ChatMessage(role, "\n".join(part.text or "" for part in message.content))


class ChatChunks:
    """The events of a streamed chat answer (`chunks.Chunks`)."""

    def __init__(self, identity: Identity, choices: int, *, include_usage: bool) -> None:
        self._envelope = Envelope(identity, "chat.completion.chunk", include_usage=include_usage)
        self._choices = range(choices)
        self._before = [
            self._envelope.before + b'{"index": %d, "delta": {"content": ' % index for index in self._choices
        ]
        self._after = b'}, "logprobs": null, "finish_reason": null}' + self._envelope.after

    def opening(self) -> bytes:
        return b"".join(self._event(index, {"role": "assistant", "content": ""}) for index in self._choices)

    def piece(self, index: int, delta: TextDelta) -> bytes:
        if delta.logprobs:
            return self._event(index, {"content": delta.text}, chat_logprobs(delta.logprobs))
        return self._before[index] + quoted(delta.text) + self._after

    def closing(self, index: int, reason: FinishReason) -> bytes:
        return self._event(index, {}, None, reason)

    def ending(self, usage: Usage) -> bytes:
        return self._envelope.ending(usage)

    def _event(
        self, index: int, delta: JsonObject, logprobs: JsonObject | None = None, reason: FinishReason | None = None
    ) -> bytes:
        return self._envelope.wrap({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason})


def _whole(identity: Identity, choices: Sequence[Choice], usage: Usage, *, with_logprobs: bool) -> JsonObject:
    return {
        **identity.fields("chat.completion"),
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": chat_logprobs(choice.logprobs) if with_logprobs else None,
                "finish_reason": choice.reason,
            }
            for index, choice in enumerate(choices)
        ],
        "usage": usage_object(usage),
    }
