"""`hyperlane chat`: a conversation on a terminal. Ctrl-C stops an answer, not the program."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperlane.cli.command import command
from hyperlane.cli.conversation import answer_room, fit
from hyperlane.cli.flags import MODEL_HELP, AnswerFlags, CommonFlags, SamplingFlags, ServeFlags
from hyperlane.cli.loading import loaded_model
from hyperlane.cli.terminal import note, warn
from hyperlane.config import Paths
from hyperlane.core import ChatMessage, FinishReason
from hyperlane.errors import HyperlaneError, UsageError

if TYPE_CHECKING:
    from hyperlane.answer import TextStream
    from hyperlane.sdk import AutoDistributedModel

HELP = """/help   this list
/reset  forget the conversation
/exit   end (so does Ctrl-D)
Ctrl-C stops an answer."""

LINE_OF_USER = "› "

ReadLine = Callable[[], str]
"""Reads what the user says. Raises EOFError at the end, KeyboardInterrupt at Ctrl-C."""


@command
def chat(
    *,
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    answer: AnswerFlags,
    sampling: SamplingFlags,
    serving: ServeFlags,
    common: CommonFlags,
) -> None:
    """Talk with a model.

    /reset forgets the conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer.

    [bold]Examples[/bold]

    hyperlane chat smollm2-135m

    hyperlane chat gemma3-270m --local-workers 2 --system "Answer in one sentence."
    """
    config = serving.resolve(model, common)
    with loaded_model(config) as loaded:
        if not loaded.service.has_chat_template:
            raise UsageError(f"{model} has no chat template; use: hyperlane run {model} --raw")
        options = {"max_tokens": answer.max_tokens, "stop": answer.stop or (), **sampling.given()}
        system = [ChatMessage("system", answer.system)] if answer.system else []
        Chat(loaded, options, system).loop(_line_reader(config.paths))


@dataclass(slots=True)
class Chat:
    """The conversation and its loop. `options`: those of `AutoDistributedModel.chat_stream`."""

    model: AutoDistributedModel
    options: dict[str, Any]
    system: list[ChatMessage]
    messages: list[ChatMessage] = field(default_factory=list)

    def loop(self, read_line: ReadLine) -> None:
        """Read and answer until the user ends it."""
        while True:
            try:
                line = read_line().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                note("Ctrl-D or /exit ends the conversation")
                continue
            if line == "/exit":
                return
            if line.startswith("/"):
                self._obey(line)
            elif line:
                self.say(line)

    def say(self, text: str) -> None:
        """Send the user's words and print the answer; what cannot be answered is taken back."""
        self.messages.append(ChatMessage("user", text))
        try:
            answer = self._answer()
        except HyperlaneError as error:
            note(f"error: {error}", style="red")
            answer = ""
        if answer:
            self.messages.append(ChatMessage("assistant", answer))
        else:
            self.messages.pop()

    def _obey(self, line: str) -> None:
        match line:
            case "/reset":
                self.messages.clear()
                note("the conversation is forgotten")
            case "/help":
                note(HELP)
            case _:
                warn(f"{line.split(maxsplit=1)[0]} is no command; /help lists them")

    def _answer(self) -> str:
        """The answer to the conversation as far as it fits, empty if it does not.

        Raises:
            HyperlaneError: the request was refused or failed.

        """
        service = self.model.service
        room = service.context - answer_room(service.context, self.options.get("max_tokens"))
        fitted = fit([*self.system, *self.messages], lambda messages: len(service.encode_chat(messages)), room)
        if fitted is None:
            warn(f"too long: {room} tokens of the context ({service.context}) are there for what is said; not sent")
            return ""
        if fitted.dropped:
            warn(f"the context is full: the oldest {fitted.dropped} messages are left out")
            del self.messages[: fitted.dropped]
        stream = self.model.chat_stream(fitted.messages, **self.options)
        _print_until_stopped(stream)
        return stream.text


def _print_until_stopped(stream: TextStream) -> None:
    try:
        for piece in stream:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        stream.close()
        sys.stdout.write("\n")
        note("stopped")
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    if stream.answer.finish_reason is FinishReason.LENGTH:
        note("the answer was cut: --max-tokens, or the context, allows no more")


def _line_reader(paths: Paths) -> ReadLine:
    """Line editing with history on a terminal; plain lines otherwise."""
    if not sys.stdin.isatty():
        return _plain_line
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.output import create_output

    paths.state.mkdir(parents=True, exist_ok=True)
    history = FileHistory(str(paths.state / "chat_history"))
    session: PromptSession[str] = PromptSession(history=history, output=create_output(stdout=sys.stderr))
    return lambda: session.prompt(LINE_OF_USER)


def _plain_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
