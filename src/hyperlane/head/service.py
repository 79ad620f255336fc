"""`HeadService`: what the HTTP edge, the Python API and the command line ask of a head, with words for tokens.

Joins a head, a tokenizer and a chat template; checks every request before it is queued. Knows no thread and no ring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from hyperlane.core import ChatMessage, GenerationRequest, HeadStatus, ModelFacts
from hyperlane.errors import InvalidRequest
from hyperlane.head.options import Words
from hyperlane.head.streams import Stream
from hyperlane.head.timings import FrameTiming
from hyperlane.head.validation import check_request


class TextTokenizer(Words, Protocol):
    """A tokenizer, as `models.tokenizer.Tokenizer` is one."""

    def encode(self, text: str, *, add_bos: bool = False) -> Sequence[int]:
        """Token ids of plain text; `add_bos`: begin with BOS if the model's rule says so."""
        ...


class Template(Protocol):
    """A chat template, as `models.chat_template.ChatTemplate` is one."""

    def encode(self, messages: Sequence[ChatMessage]) -> Sequence[int]:
        """Token ids of a conversation up to where the assistant's turn begins.

        Raises:
            InvalidRequest: the template refuses the messages.

        """
        ...


class Answers(Protocol):
    """A head, or several replicas as one."""

    @property
    def model(self) -> ModelFacts: ...

    @property
    def context(self) -> int: ...

    def submit(self, request: GenerationRequest) -> Stream: ...

    def status(self) -> HeadStatus: ...

    def recent_frames(self) -> tuple[FrameTiming, ...]: ...

    def ready(self) -> bool: ...

    def close(self) -> None: ...


class HeadService:
    """A `core.TextGenerator`. `template`: None for a model without one. `around`: completes a status."""

    def __init__(
        self,
        head: Answers,
        tokenizer: TextTokenizer,
        template: Template | None = None,
        around: Callable[[HeadStatus], HeadStatus] = lambda status: status,
    ) -> None:
        self._head = head
        self._around = around
        self._tokenizer = tokenizer
        self._template = template

    @property
    def facts(self) -> ModelFacts:
        return self._head.model

    @property
    def context(self) -> int:
        return self._head.context

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_bos=True))

    def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        if self._template is None:
            raise InvalidRequest(
                "this model brings no chat template; give one at the start, or ask for a completion", param="messages"
            )
        return tuple(self._template.encode(messages))

    def token_text(self, token: int) -> bytes:
        return self._tokenizer.token_bytes(token)

    def submit(self, request: GenerationRequest) -> Stream:
        check_request(request, self.facts.vocab, self.context)
        return self._head.submit(request)

    def status(self) -> HeadStatus:
        return self._around(self._head.status())

    def recent_frames(self) -> tuple[FrameTiming, ...]:
        """What the last frames of the pipeline took, in the order in which they came back."""
        return self._head.recent_frames()

    def ready(self) -> bool:
        return self._head.ready()

    def close(self) -> None:
        """End every request with an error and accept no more. Idempotent."""
        self._head.close()
