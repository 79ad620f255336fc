"""The `hyperlane` program as a child process, for tests of what a user sees. Knows no command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import Queue
from types import TracebackType
from typing import Self

import psutil

WAIT_S = 60.0
"""How long anything in a test may take before it counts as stuck."""


class Program:
    """One run of `hyperlane` in a process group of its own. As a context manager it leaves no process behind."""

    def __init__(self, *arguments: str, home: Path, environ: Mapping[str, str] | None = None) -> None:
        """Start it, with `home` for all its files and one thread for each worker."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("HYPERLANE_")}
        # What other machines of this network say must not be heard, nor must they hear of a test.
        variables |= {"HYPERLANE_HOME": str(home), "HYPERLANE_SERVE_THREADS": "1", "HYPERLANE_DISCOVERY_MDNS": "no"}
        variables["HYPERLANE_SERVE_MEASURE"] = "never"  # on a busy machine layers would go here or there
        variables |= environ or {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hyperlane", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=variables,
            encoding="utf-8",
            start_new_session=os.name == "posix",
        )
        self._family = {self._process.pid: psutil.Process(self._process.pid)}
        self.out: list[str] = []
        self.err: list[str] = []
        self._lines: Queue[str | None] = Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(stream, kept), daemon=True)
            for stream, kept in ((self._process.stdout, self.out), (self._process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def stdout(self) -> str:
        """Standard output so far."""
        return "".join(self.out)

    @property
    def stderr(self) -> str:
        """Standard error so far."""
        return "".join(self.err)

    def say(self, text: str) -> None:
        """Write to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def end_input(self) -> None:
        """End its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait_for(self, words: str) -> str:
        """The first line, of either output, that holds these words; fails the test when the program ends before."""
        waiting = 2
        while waiting:
            line = self._lines.get(timeout=WAIT_S)
            if line is None:
                waiting -= 1
            elif words in line:
                self._remember_children()
                return line
        raise AssertionError(f"the program ended without saying '{words}':\n{self.stdout}\n{self.stderr}")

    def signal_group(self, number: signal.Signals) -> None:
        """Signal it and its process group, as a terminal does at Ctrl-C."""
        self._remember_children()
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End it at once, without a chance to clean up."""
        self._remember_children()
        self._process.kill()

    def wait(self) -> int:
        """Wait until it has ended; its exit code."""
        code = self._process.wait(WAIT_S)
        for reader in self._readers:
            reader.join(WAIT_S)
        return code

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def survivors(self) -> list[psutil.Process]:
        """Processes of its family that are still there after a while, itself included."""
        family = [process for process in self._family.values() if process.is_running()]
        _, alive = psutil.wait_procs(family, timeout=WAIT_S / 4)
        return alive

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._remember_children()
        for process in self._family.values():
            if process.is_running():
                process.kill()
        self.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _remember_children(self) -> None:
        try:
            children = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        self._family.update({child.pid: child for child in children})

    def _read(self, stream: object, kept: list[str]) -> None:
        for line in stream:  # type: ignore[attr-defined]
            kept.append(line)
            self._lines.put(line)
        self._lines.put(None)
