"""Server-sent events as bytes: what each kind of answer puts around a piece of text, prepared once per request.

A token's way ends here, so nothing is serialised for it but its own text. Knows no stream and no socket.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Protocol

from hyperlane.api.errors import Problem
from hyperlane.core import FinishReason, TextDelta, Usage

DONE = b"data: [DONE]\n\n"
SILENCE = b": still working\n\n"
"""A comment, which clients skip: it keeps proxies from closing a connection on which nothing happens for long."""

JsonObject = Mapping[str, object]


class Chunks(Protocol):
    """How one endpoint writes the events of a stream. `index` is the choice's."""

    def opening(self) -> bytes:
        """What comes before the first piece of any choice; may be empty."""
        ...

    def piece(self, index: int, delta: TextDelta) -> bytes:
        """A piece of a choice's text."""
        ...

    def closing(self, index: int, reason: FinishReason) -> bytes:
        """The end of a choice."""
        ...

    def ending(self, usage: Usage) -> bytes:
        """What comes after the last choice."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """What every object of one answer carries. `created`: seconds since 1970."""

    id: str
    created: int
    model: str
    fingerprint: str

    def fields(self, kind: str) -> dict[str, object]:
        """The first fields of an object of the given kind."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


class Envelope:
    """The bytes around a chunk's choices. With `include_usage` every chunk says `"usage": null` but the last."""

    def __init__(self, identity: Identity, kind: str, *, include_usage: bool) -> None:
        self._fields = identity.fields(kind)
        self._include_usage = include_usage
        self.before = b"data: " + json.dumps(self._fields)[:-1].encode() + b', "choices": ['
        self.after = b'], "usage": null}\n\n' if include_usage else b"]}\n\n"

    def wrap(self, choice: JsonObject) -> bytes:
        """A whole event with one choice."""
        return self.before + json.dumps(choice).encode() + self.after

    def ending(self, usage: Usage) -> bytes:
        """The last events: the token counts, if they were asked for, and the mark of the end."""
        if not self._include_usage:
            return DONE
        return event({**self._fields, "choices": [], "usage": usage_object(usage)}) + DONE


def event(content: JsonObject) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def error_event(problem: Problem) -> bytes:
    """The event that ends a stream in which something failed. No `[DONE]` follows it."""
    return b"data: " + problem.body() + b"\n\n"


def quoted(text: str) -> bytes:
    """A text as a JSON string, ASCII alone."""
    return encode_basestring_ascii(text).encode("ascii")


def usage_object(usage: Usage) -> JsonObject:
    """Token counts as the API says them; `paused_s` is ours, and there only where workers were lost."""
    paused = {"paused_s": round(usage.paused_s, 3)} if usage.paused_s else {}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        **paused,
    }
