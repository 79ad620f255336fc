"""What every command shares: flags in groups, errors as a line and an exit code, Ctrl-C as 130. Knows no command."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, get_type_hints

import typer

from hyperlane.cli.flags import CommonFlags
from hyperlane.errors import HyperlaneError

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command that typer understands of a function whose parameters may be groups of flags (dataclasses).

    The groups' fields become options of the command. A `HyperlaneError` ends it with a line on standard error and the
    error's exit code; with `--verbose`, with the traceback too.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type[Any], list[str]]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            options = _options(hints[name])
            groups[name] = (hints[name], [option.name for option in options])
            parameters += options
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    def run(**given: object) -> None:
        for name, (group, options) in groups.items():
            given[name] = group(**{option: given.pop(option) for option in options})
        common = next((value for value in given.values() if isinstance(value, CommonFlags)), CommonFlags())
        with_errors_told(lambda: function(**given), verbose=common.verbose)

    run.__doc__ = function.__doc__
    run.__name__ = function.__name__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _options(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=hints[option.name]
        )
        for option in dataclasses.fields(group)
    ]


def with_errors_told(work: Callable[[], None], *, verbose: bool) -> None:
    """Do a command's work; expected errors become a line on standard error and an exit code."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        work()
    except HyperlaneError as error:
        if verbose:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def end_on_terminate() -> None:
    """Make SIGTERM unwind the stack as an exception does, so that workers are ended, and end with 143."""

    def stop(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
