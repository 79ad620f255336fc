"""`FakeGenerator`: a `core.TextGenerator` that answers from a script. For tests of whatever sits above a head."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hyperlane.core import (
    ChatMessage,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    HeadStatus,
    ModelFacts,
    RequestTimings,
    SamplingParams,
    StageStatus,
    TextDelta,
    TokenChoice,
    TokenLogprob,
    Usage,
)
from hyperlane.errors import InvalidRequest
from hyperlane.head.streams import Stream
from hyperlane.head.validation import check_request
from hyperlane.testing.byte_tokenizer import ByteTokenizer
from hyperlane.testing.toy import toy_facts, toy_plan


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request is answered: a delta for each piece (a token is a byte of its UTF-8), then the end.

    `finish`: a reason, or the error of a `Failed`. `gate`: each release lets one event out (None: all at once).
    """

    pieces: tuple[str, ...] = ("Hello", ",", " world", ".")
    finish: FinishReason | Exception = FinishReason.STOP
    gate: threading.Semaphore | None = None


class FakeGenerator:
    """Answers requests in order of submission from `answers`, over and over, or from a function of the request.

    `requests` and `cancelled` (request ids) record what was asked; set `refusal` to make `submit` raise it, and
    `is_ready` for `ready`. `max_tokens` cuts an answer with `LENGTH`; `stop` strings are left to the script.
    """

    def __init__(
        self,
        answers: Sequence[Answer] | Callable[[GenerationRequest], Answer] = (Answer(),),
        *,
        facts: ModelFacts | None = None,
        has_chat_template: bool = True,
    ) -> None:
        self.requests: list[GenerationRequest] = []
        self.cancelled: list[str] = []
        self.refusal: Exception | None = None
        self.is_ready = True
        self.tokenizer = ByteTokenizer()
        self._answers = answers
        self._facts = facts or toy_facts()
        self._has_chat_template = has_chat_template
        self._ended = 0

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    @property
    def context(self) -> int:
        return self._facts.context

    @property
    def has_chat_template(self) -> bool:
        return self._has_chat_template

    def encode(self, text: str) -> tuple[int, ...]:
        return self.tokenizer.encode(text)

    def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        if not self._has_chat_template:
            raise InvalidRequest("the model has no chat template; use completions", param="messages")
        turns = "".join(f"{message.role}: {message.content}\n" for message in messages)
        return self.encode(turns + "assistant: ")

    def token_text(self, token: int) -> bytes:
        return self.tokenizer.token_bytes(token)

    def submit(self, request: GenerationRequest) -> Stream:
        if self.refusal is not None:
            raise self.refusal
        check_request(request, self._facts.vocab, self.context)
        answers = self._answers
        answer = answers(request) if callable(answers) else answers[len(self.requests) % len(answers)]
        self.requests.append(request)
        telling = _Telling(self, request, answer)
        telling.start()
        return telling.stream

    def status(self) -> HeadStatus:
        plan = toy_plan(self._facts)
        return HeadStatus(
            model=self._facts.name,
            ready=self.is_ready,
            plan=plan,
            epoch=1,
            stages=tuple(StageStatus(stage, 0.0, 0.0, 0.0, 0.0) for stage in plan.stages),
            queued=0,
            active=len(self.requests) - self._ended,
            slots=plan.slots,
            requests_admitted=len(self.requests),
            requests_ended=self._ended,
            requests_refused=0,
            prompt_tokens=sum(len(request.prompt) for request in self.requests),
            completion_tokens=0,
            logits_refetched=0,
            ring_us=0.0,
            uptime_s=0.0,
        )

    def ready(self) -> bool:
        return self.is_ready

    def note_end(self) -> None:
        """Count a request that ended."""
        self._ended += 1


class _Telling:
    """One answer on its way: published at once, or from a thread of its own as the gate opens."""

    def __init__(self, generator: FakeGenerator, request: GenerationRequest, answer: Answer) -> None:
        self.stream = Stream(self._cancel)
        self._generator = generator
        self._request = request
        self._answer = answer
        self._cancelled = threading.Event()

    def start(self) -> None:
        if self._answer.gate is None:
            self._tell()
        else:
            threading.Thread(target=self._tell, name=f"fake-{self._request.request_id}", daemon=True).start()

    def _cancel(self) -> None:
        if not self._cancelled.is_set():
            self._cancelled.set()
            self._generator.cancelled.append(self._request.request_id)
            if self._answer.gate is not None:
                self._answer.gate.release()

    def _tell(self) -> None:
        deltas, end = self._script()
        told = 0
        for delta in deltas:
            if self._is_held():
                break
            told += len(delta.tokens)
            self.stream.publish(delta)
        if self._cancelled.is_set() or self._is_held():
            end = FinishReason.CANCELLED
        self._generator.note_end()
        if isinstance(end, Exception):
            self.stream.publish(Failed(end))
        else:
            usage = Usage(len(self._request.prompt), told)
            self.stream.publish(Finished(end, usage, RequestTimings(0.0, 0.0, 0.0)))

    def _is_held(self) -> bool:
        """Wait for the gate; true when the request was cancelled meanwhile."""
        if self._answer.gate is not None:
            self._answer.gate.acquire()
        return self._cancelled.is_set()

    def _script(self) -> tuple[list[TextDelta], FinishReason | Exception]:
        """The deltas that `max_tokens` leaves, and how the answer ends."""
        deltas: list[TextDelta] = []
        left = self._request.max_tokens or self._generator.context
        for piece in self._answer.pieces:
            tokens = self._generator.encode(piece)[:left]
            text = self._generator.tokenizer.decode(tokens)
            deltas.append(TextDelta(text, tokens, _logprobs(tokens, self._request.sampling)))
            left -= len(tokens)
            if text != piece:
                return deltas, FinishReason.LENGTH
        return deltas, self._answer.finish


def _logprobs(tokens: Sequence[int], params: SamplingParams) -> tuple[TokenChoice, ...]:
    """Made-up log-probabilities: -0.5 for the chosen byte, one less for each byte that follows it."""
    if params.logprobs is None:
        return ()
    tokenizer = ByteTokenizer()

    def alternative(token: int, rank: int) -> TokenLogprob:
        other = (token + rank) % 256
        return TokenLogprob(other, tokenizer.token_bytes(other), -0.5 - rank)

    return tuple(
        TokenChoice(alternative(token, 0), tuple(alternative(token, rank) for rank in range(params.logprobs)))
        for token in tokens
    )
