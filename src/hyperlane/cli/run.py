"""`hyperlane run`: one prompt, one answer. The answer alone is on standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hyperlane.cli.command import command
from hyperlane.cli.flags import MODEL_HELP, AnswerFlags, CommonFlags, SamplingFlags, ServeFlags
from hyperlane.cli.loading import loaded_model
from hyperlane.cli.terminal import note, write_json
from hyperlane.errors import UsageError

if TYPE_CHECKING:
    from hyperlane.answer import TextStream
    from hyperlane.sdk import AutoDistributedModel


@command
def run(
    *,
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    prompt: Annotated[
        str | None, typer.Argument(help="the prompt; '-' or nothing reads it from standard input", show_default=False)
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="continue the prompt, without chat template")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON object: answer, usage, timings, plan")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no summary at the end")] = False,
    answer: AnswerFlags,
    sampling: SamplingFlags,
    serving: ServeFlags,
    common: CommonFlags,
) -> None:
    """Answer one prompt.

    The answer is on standard output; progress and the summary are on standard error.

    [bold]Examples[/bold]

    hyperlane run smollm2-135m "Why is the sky blue?"

    git diff | hyperlane run smollm2-135m --system "Write a commit message." --temperature 0

    hyperlane run ./model.gguf "Once upon a time" --raw --local-workers 2 --json
    """
    from hyperlane import summary

    text = read_prompt(prompt)
    if raw and answer.system:
        raise UsageError("--raw sends the prompt as it is; it cannot be given together with --system")
    with loaded_model(serving.resolve(model, common), quiet=quiet or as_json) as loaded:
        stream = _ask(loaded, text, raw, answer, sampling)
        if as_json:
            write_json(summary.answer_plain(stream.read(), loaded.status()))
            return
        _print_answer(stream)
        if not quiet:
            note(summary.answer_summary(stream.answer, loaded.status()))


def read_prompt(prompt: str | None) -> str:
    """The prompt given, or standard input's text.

    Raises:
        UsageError: there is none, or standard input is a terminal and was not asked for.

    """
    if prompt is None and sys.stdin.isatty():
        raise UsageError('no prompt; write it after the model, as in: hyperlane run MODEL "Why is the sky blue?"')
    text = sys.stdin.read().strip() if prompt in (None, "-") else prompt
    if not text:
        raise UsageError("the prompt is empty")
    return text


def _ask(model: AutoDistributedModel, text: str, raw: bool, answer: AnswerFlags, sampling: SamplingFlags) -> TextStream:
    stop = answer.stop or ()
    if raw or not model.service.has_chat_template:
        return model.stream(text, max_tokens=answer.max_tokens, stop=stop, **sampling.given())
    system = [{"role": "system", "content": answer.system}] if answer.system else []
    messages = [*system, {"role": "user", "content": text}]
    return model.chat_stream(messages, max_tokens=answer.max_tokens, stop=stop, **sampling.given())


def _print_answer(stream: TextStream) -> None:
    """The answer's pieces as they come, and a line's end where the answer has none."""
    for piece in stream:
        sys.stdout.write(piece)
        sys.stdout.flush()
    if not stream.text.endswith("\n"):
        sys.stdout.write("\n")
        sys.stdout.flush()
