"""The command line on a terminal: line editing, Ctrl-C and Ctrl-D as a person presses them, colours."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time

import psutil
import pytest

if sys.platform == "win32":
    pytest.skip("pseudo-terminals are POSIX", allow_module_level=True)

PROMPT = "›"
WAIT_S = 60.0


class Terminal:
    """A program on a pseudo-terminal of its own, and a person who types."""

    def __init__(self, *arguments: str, **environ: str) -> None:
        self._master, self._slave = os.openpty()
        where = os.ttyname(self._slave)
        # A session leader's first open of a terminal makes it the one whose Ctrl-C it gets.
        line = f'exec "$@" <{where} >{where} 2>&1'
        self.process = subprocess.Popen(
            ["sh", "-c", line, "sh", sys.executable, "-m", "hyperlane", *arguments],
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "HYPERLANE_SERVE_THREADS": "1", **environ},
        )
        self.unread = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, words: str) -> str:
        """What is shown up to and with these words."""
        deadline_s = time.monotonic() + WAIT_S
        while words not in self.unread:
            piece = self._read()
            self.unread += piece
            assert piece, f"the program ended: {self.unread}"
            assert time.monotonic() < deadline_s, self.unread
        shown, _, self.unread = self.unread.partition(words)
        return shown + words

    def rest(self) -> str:
        """What is shown until the program ends."""
        while piece := self._read():
            self.unread += piece
        return self.unread

    def _read(self) -> str:
        """What is shown next; nothing when the program has ended and all of it was read."""
        while not select.select([self._master], [], [], 0.1)[0]:
            if self.process.poll() is not None:
                return ""
        return os.read(self._master, 4096).decode(errors="replace")

    def close(self) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        for process in family:
            process.kill()
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def terminal():
    opened: list[Terminal] = []

    def start(*arguments: str, **environ: str) -> Terminal:
        opened.append(Terminal(*arguments, **environ))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_ctrl_c_stops_the_answer_and_ctrl_d_ends_the_chat(terminal, smollm2_path):
    chat = terminal("chat", str(smollm2_path), "-t", "0", "--local-workers", "2")
    chat.until("slots of")
    chat.until(PROMPT)
    workers = psutil.Process(chat.process.pid).children(recursive=True)
    chat.type("Write a very long story about a lighthouse keeper.\r")
    chat.until("the")
    chat.type("\x03")
    chat.until("stopped")
    chat.until(PROMPT)
    chat.type("\x03")
    chat.until("ends the conversation")
    chat.until(PROMPT)
    chat.type("/help\r")
    chat.until("/reset")
    chat.until(PROMPT)
    assert chat.process.poll() is None
    chat.type("\x04")
    chat.rest()
    assert chat.process.wait(WAIT_S) == 0
    assert psutil.wait_procs(workers, timeout=WAIT_S)[1] == []


@pytest.mark.slow
def test_what_was_said_is_in_the_history_of_the_next_chat(terminal, tiny_model):
    for number in range(2):
        chat = terminal("chat", tiny_model, "-n", "2")
        chat.until("slots of")
        chat.until(PROMPT)
        chat.type("the first words\r" if number == 0 else "\x1b[A\r")
        shown = chat.until("\n")
        assert "the first words" in shown or "the first words" in chat.until(PROMPT)
        chat.until(PROMPT)
        chat.type("\x04")
        chat.rest()
        assert chat.process.wait(WAIT_S) == 0


@pytest.mark.parametrize(("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_are_for_terminals_that_want_them(terminal, tiny_model, environ, coloured):
    run = terminal("run", tiny_model, "the", "--raw", "-n", "2", **environ)
    shown = run.rest()
    assert run.process.wait(WAIT_S) == 0
    assert "answer tokens" in shown
    assert bool(re.search(r"\x1b\[[39]\d", shown)) is coloured


def test_ctrl_c_while_the_model_loads_leaves_nothing(terminal, tiny_model):
    run = terminal("run", tiny_model, "the", "--raw", "--local-workers", "2")
    run.until("starting local workers")
    workers = psutil.Process(run.process.pid).children(recursive=True)
    run.type("\x03")
    run.rest()
    assert run.process.wait(WAIT_S) == 130
    assert psutil.wait_procs(workers, timeout=WAIT_S)[1] == []


def test_run_on_a_terminal_without_a_prompt_says_how_to_write_one(terminal):
    run = terminal("run", "smollm2-135m")
    assert "no prompt" in run.rest()
    assert run.process.wait(WAIT_S) == 2
