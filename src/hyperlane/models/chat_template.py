"""`ChatTemplate`: a conversation as token ids, by the template that the model file brings or a user gives.

Owns the rule that special tokens come from the template alone, never from what a message says. Knows no API.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from jinja2 import TemplateError, TemplateSyntaxError

from hyperlane.core import ChatMessage
from hyperlane.errors import ConfigError, InvalidRequest, UnsupportedModel
from hyperlane.models.template_sandbox import BoundedTemplate
from hyperlane.models.tokenizer import Tokenizer

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_FAILURES = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What a bad template can make Jinja, Python's compiler or its own expressions raise."""

_REMEDY = "give another template with --chat-template FILE, or use /v1/completions"


class ChatTemplate:
    """A template and the tokenizer whose special tokens it writes. Compiled at first use. Thread-safe."""

    def __init__(self, source: str, tokenizer: Tokenizer, now: Callable[[], datetime] = datetime.now) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._now = now

    def check(self) -> None:
        """Compile the template.

        Raises:
            UnsupportedModel: it is not a template, or uses what Hyperlane does not let templates use.

        """
        try:
            _ = self._template
        except _FAILURES as error:
            raise UnsupportedModel(f"the chat template cannot be used: {_described(error)}; {_REMEDY}") from error

    def encode(self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, by default up to where the assistant's answer begins.

        Special tokens that the template writes are tokens; what looks like one in a message is plain text. Without
        any of those the ids are those of the rendered text. BOS is there once if the model wants it, whether the
        template writes it or not.

        Raises:
            InvalidRequest: the template refuses the messages, fails on them, or cannot be used at all.

        """
        mark = _unused_character(text for message in messages for text in (message.role, message.content))
        guarded = [
            {"role": self._guard(message.role, mark), "content": self._guard(message.content, mark)}
            for message in messages
        ]
        fragments = self._tokenizer.control.split(self._render(guarded, add_generation_prompt))
        unmarked = (part.replace(mark, "") if isinstance(part, str) else part for part in fragments)
        return self._tokenizer.encode_fragments(unmarked, add_bos=True)

    def render(self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text, to look at. Not to be encoded: it does not say which special tokens are ours.

        Raises:
            InvalidRequest: as `encode`.

        """
        plain = [{"role": message.role, "content": message.content} for message in messages]
        return self._render(plain, add_generation_prompt)

    @cached_property
    def _template(self) -> BoundedTemplate:
        return BoundedTemplate(self._source, {"raise_exception": _refuse, "strftime_now": self._strftime})

    def _guard(self, text: str, mark: str) -> str:
        return self._tokenizer.control.guard(text, mark)

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        tokenizer = self._tokenizer
        variables = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
            "bos_token": tokenizer.token_text(tokenizer.bos_id),
            "eos_token": tokenizer.token_text(tokenizer.eos_id),
            "unk_token": tokenizer.token_text(tokenizer.unk_id),
            "pad_token": tokenizer.token_text(tokenizer.pad_id),
        }
        try:
            return self._template.render(variables)
        except _Refusal as error:
            raise InvalidRequest(f"the model's chat template refuses: {error}", param="messages") from error
        except _FAILURES as error:
            raise InvalidRequest(
                f"the model's chat template fails on these messages: {_described(error)}; {_REMEDY}", param="messages"
            ) from error

    def _strftime(self, layout: str) -> str:
        if len(layout) > 100:
            raise ValueError("the format of a date has more than 100 characters")
        return self._now().strftime(layout)


def chat_template(tokenizer: Tokenizer, source: str | None = None) -> ChatTemplate | None:
    """The template to use: `source` if given, else the model file's own; None when there is neither."""
    chosen = tokenizer.chat_template if source is None else source
    return None if chosen is None else ChatTemplate(chosen, tokenizer)


def required(template: ChatTemplate | None) -> ChatTemplate:
    """The template, for a request that needs one.

    Raises:
        InvalidRequest: there is none; the message says what to do.

    """
    if template is None:
        raise InvalidRequest(
            "this model brings no chat template (it may be a base model, not trained for chat): "
            "start with --chat-template FILE, or use /v1/completions",
            param="messages",
        )
    return template


class _Refusal(TemplateError):
    """A template's own `raise_exception`."""


def _refuse(message: str) -> NoReturn:
    raise _Refusal(message)


def _described(error: BaseException) -> str:
    where = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
    what = error.message if isinstance(error, TemplateError) else str(error)
    return f"{where}{what or type(error).__name__}"


def _unused_character(texts: Iterable[str]) -> str:
    """A private-use character that occurs in none of the texts."""
    used = set().union(*texts)
    for characters in _PRIVATE_USE:
        for code in characters:
            if chr(code) not in used:
                return chr(code)
    raise InvalidRequest("the messages use every private-use character of Unicode", param="messages")


def chat_template_of(tokenizer: Tokenizer, file: Path | None) -> ChatTemplate | None:
    """The template in a file, or without one the model's own.

    Raises:
        ConfigError: the file cannot be read.
        UnsupportedModel: it is no template.

    """
    if file is None:
        return chat_template(tokenizer)
    try:
        template = chat_template(tokenizer, file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the chat template {file} cannot be read: {error}") from error
    if template is not None:
        template.check()
    return template
