"""Text for people on standard error: progress, notes, colours on a terminal only. Standard output is for answers."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


@cache
def console() -> Console:
    """Standard error. Colours and progress bars only on a terminal; NO_COLOR switches colours off."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def speak_utf8() -> None:
    """Read and write UTF-8 whatever the system's own encoding is: answers hold any character, and pipes have no say."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def note(text: str, style: str = "dim") -> None:
    """A line for people."""
    console().print(text, style=style, markup=False)


def warn(text: str) -> None:
    """A line that people should not miss."""
    console().print(f"warning: {text}", style="yellow", markup=False)


def write_json(value: object) -> None:
    """One JSON value on standard output, alone."""
    json.dump(value, sys.stdout, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)
    sys.stdout.write("\n")


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Progress bars that vanish at the end; nothing at all when standard error is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(), transient=True, disable=not console().is_terminal) as bars:
        yield bars
