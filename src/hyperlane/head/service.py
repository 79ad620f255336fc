"""`HeadService`: what the HTTP edge, the Python API and the command line ask of a head, with words for tokens.

Joins a head, a tokenizer and a chat template; checks every request before it is queued. Knows no thread and no ring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from hyperlane.core import ChatMessage, GenerationRequest, HeadStatus, ModelFacts, Plan
from hyperlane.errors import InvalidRequest
from hyperlane.head.head import Head
from hyperlane.head.options import Words
from hyperlane.head.streams import Stream
from hyperlane.head.timings import FrameTiming
from hyperlane.head.validation import check_request
from hyperlane.wire.link import Ring


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


class HeadService:
    """A `core.TextGenerator`. `template`: None for a model without one. `around`: completes a status."""

    def __init__(
        self,
        head: Head,
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

    def attach(self, ring: Ring, plan: Plan, epoch: int, warm_up_timeout_s: float = 60.0) -> None:
        """Serve with this pipeline from now on, and prove it with a token; blocks for that.

        Requests of one that ran before go on with this one.

        Raises:
            HyperlaneError: no token came through; the pipeline stays attached unless its ring failed.

        """
        self._head.pause()
        self._head.attach(ring, plan, epoch)
        self._head.warm_up(warm_up_timeout_s)

    def close(self) -> None:
        """End every request with an error and accept no more. Idempotent."""
        self._head.close()
