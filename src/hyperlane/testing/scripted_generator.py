"""A TextGenerator without a model: it answers each request with the pieces that it was given. Pure Python."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

from hyperlane.core import (
    ChatMessage,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    HeadStatus,
    ModelFacts,
    Plan,
    RequestTimings,
    RopeFacts,
    StageStatus,
    TextDelta,
    Usage,
)
from hyperlane.errors import ContextLengthExceeded, InvalidRequest
from hyperlane.testing.plans import two_stage_plan

SCRIPTED_FACTS = ModelFacts(
    name="scripted",
    family="llama",
    fingerprint="0" * 64,
    layers=4,
    hidden=8,
    heads=2,
    kv_heads=1,
    head_dim=4,
    ffn=16,
    vocab=256,
    context=256,
    rms_eps=1e-5,
    rope=RopeFacts(theta=10_000.0, dims=4),
    tied_output=True,
)


class ScriptedStream:
    """The events of one scripted answer; `cancelled` says whether the reader gave up."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = events
        self.cancelled = False

    def __iter__(self) -> Iterator[Event]:
        for event in self._events:
            if self.cancelled:
                return
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        for event in self:
            yield event

    def cancel(self) -> None:
        """Give up."""
        self.cancelled = True


class ScriptedGenerator:
    """Answers every request with `pieces`, or with `error`. A token is a byte.

    `requests` and `streams` keep what came.
    """

    def __init__(self, pieces: Sequence[str], *, error: Exception | None = None, context: int = 256) -> None:
        self.pieces = pieces
        self.error = error
        self.facts = SCRIPTED_FACTS
        self.context = context
        self.has_chat_template = True
        self.requests: list[GenerationRequest] = []
        self.streams: list[ScriptedStream] = []

    def encode(self, text: str) -> tuple[int, ...]:
        """The text's bytes."""
        return tuple(text.encode())

    def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """The bytes of `role:content` lines."""
        if not self.has_chat_template:
            raise InvalidRequest("the model has no chat template", param="messages")
        return self.encode("".join(f"{message.role}:{message.content}\n" for message in messages))

    def token_text(self, token: int) -> bytes:
        """A token is a byte."""
        return bytes([token])

    def submit(self, request: GenerationRequest) -> ScriptedStream:
        """Answer from the script. Raises ContextLengthExceeded as a head does."""
        if len(request.prompt) >= self.context:
            raise ContextLengthExceeded(f"the prompt has {len(request.prompt)} tokens, the context {self.context}")
        deltas = [TextDelta(piece, self.encode(piece)) for piece in self.pieces]
        usage = Usage(len(request.prompt), sum(len(delta.tokens) for delta in deltas))
        last = Failed(self.error) if self.error else Finished(FinishReason.STOP, usage, RequestTimings(0.0, 0.5, 1.0))
        self.requests.append(request)
        self.streams.append(ScriptedStream([*deltas, last]))
        return self.streams[-1]

    @property
    def plan(self) -> Plan:
        """Two workers with half of the layers each."""
        return two_stage_plan(self.facts, self.context)

    def status(self) -> HeadStatus:
        """Plausible numbers."""
        stages = tuple(StageStatus(stage, 1000.0, 50.0, 20.0, 32.0) for stage in self.plan.stages)
        return HeadStatus(
            model=self.facts.name,
            ready=True,
            plan=self.plan,
            epoch=1,
            stages=stages,
            queued=0,
            active=0,
            slots=4,
            requests_admitted=len(self.requests),
            requests_ended=len(self.requests),
            requests_refused=0,
            prompt_tokens=0,
            completion_tokens=0,
            logits_refetched=0,
            ring_us=2100.0,
            uptime_s=1.0,
        )

    def ready(self) -> bool:
        """Always."""
        return True
