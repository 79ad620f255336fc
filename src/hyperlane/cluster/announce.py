"""Child processes that print one JSON line when they are ready and end when their standard input does.

The same on every system, and nothing is left behind: when the parent dies, whatever the reason, the pipe ends.
Knows nothing of what the children do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Self

from hyperlane.core import Address

MAX_LINE_BYTES = 4096
STOP_WITHIN_S = 10.0
"""How long a child may take to end by itself once its standard input has ended."""
KILL_AFTER_S = 3.0
LAST_LINES = 12


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a child says when it is ready. `token`: what its callers must show; empty when it asks for nothing."""

    name: str
    address: Address
    token: str = ""

    def print(self) -> None:
        """Say it: one line on standard output, then nothing more."""
        where = {"host": self.address.host, "port": self.address.port}
        print(json.dumps({"name": self.name, **where, "token": self.token}), flush=True)

    @classmethod
    def read(cls, line: bytes) -> Self:
        """The line of a child.

        Raises:
            ValueError: it is none.

        """
        try:
            said = json.loads(line)
            return cls(str(said["name"]), Address(str(said["host"]), int(said["port"])), str(said.get("token", "")))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{line!r} is no announcement") from error


class Child:
    """One child process. `log` holds its standard error, and is removed when it ended well."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environ: Mapping[str, str] | None = None,
        tell: Callable[[str], object] | None = None,
    ) -> None:
        """Start it; `announcement` waits until it is ready. `tell`: gets each line of its standard error as well."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("wb") as errors:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors if tell is None else subprocess.PIPE,
                env=environ,
                # Ctrl-C in a terminal reaches every process of the foreground group; the parent drains first.
                start_new_session=os.name == "posix",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        self._lines: Queue[bytes] = Queue()
        readers = [threading.Thread(target=self._read, name=f"stdout-{self._process.pid}", daemon=True)]
        if tell is not None:
            readers.append(threading.Thread(target=self._pass_on, args=(tell,), name="stderr", daemon=True))
        self._readers = readers
        for reader in readers:
            reader.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def ended(self) -> str | None:
        """How it ended, or None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    @property
    def exit_code(self) -> int | None:
        """What it ended with, or None while it runs."""
        return self._process.poll()

    def wait(self) -> None:
        """Until it has ended, and all that it said was read."""
        self._process.wait()
        for reader in self._readers:
            reader.join()

    def announcement(self, deadline_s: float) -> Announcement:
        """Wait until it is ready. `deadline_s`: on the monotonic clock.

        Raises:
            ChildFailed: it ended, said something else, or was not ready in time.

        """
        try:
            line = self._lines.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except Empty:
            raise ChildFailed("was not ready in time" + self.last_words()) from None
        if not line:
            self._process.wait(KILL_AFTER_S)
            for reader in self._readers[1:]:
                reader.join(KILL_AFTER_S)
            raise ChildFailed((self.ended or "closed its output") + self.last_words())
        try:
            return Announcement.read(line)
        except ValueError as error:
            raise ChildFailed(f"said {line[:80]!r} instead of its ports") from error

    def last_words(self) -> str:
        """The end of its standard error, to be put after a message; empty when there is none."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        lines = [line for line in text.splitlines() if line.strip()][-LAST_LINES:]
        return "; its last words:\n  " + "\n  ".join(lines) + f"\n(all of it: {self.log})" if lines else ""

    def ask_to_stop(self) -> None:
        """End its standard input: it finishes and ends. Does not wait; idempotent."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                return

    def ask_to_leave(self) -> None:
        """Send it SIGTERM, which lets it finish what others wait for; where there is none, as `ask_to_stop`."""
        if os.name == "posix":
            self._process.send_signal(signal.SIGTERM)
        else:
            self.ask_to_stop()

    def stop(self, deadline_s: float) -> None:
        """Make it end, by force when it does not until `deadline_s` (monotonic clock). Idempotent."""
        self.ask_to_stop()
        for last_resort in (self._process.terminate, self._process.kill):
            try:
                self._process.wait(max(0.0, deadline_s - time.monotonic()))
                break
            except subprocess.TimeoutExpired:
                last_resort()
                deadline_s = time.monotonic() + KILL_AFTER_S
        self.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        if self._process.returncode == 0:
            self.log.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it at once, also when it is suspended. Idempotent."""
        self._process.kill()
        self.stop(time.monotonic() + KILL_AFTER_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines.put(self._process.stdout.readline(MAX_LINE_BYTES))
        # Whatever a library prints later must not fill the pipe and block the child.
        while self._process.stdout.read(MAX_LINE_BYTES):
            pass

    def _pass_on(self, tell: Callable[[str], object]) -> None:
        assert self._process.stderr is not None
        with self.log.open("wb", buffering=0) as log:
            for line in iter(lambda: self._process.stderr.readline(MAX_LINE_BYTES), b""):  # type: ignore[union-attr]
                log.write(line)
                tell(line.decode("utf-8", "replace").rstrip("\r\n"))


class ChildFailed(Exception):
    """A child did not come up. The message continues a sentence that names it."""


def when_parent_ends(then: Callable[[], object]) -> None:
    """In a child: call `then` from another thread when standard input ends."""

    def wait() -> None:
        # Bare reads: a thread that waits inside the buffered reader would hold its lock at the interpreter's end.
        while _read_some(sys.stdin.fileno()):
            pass
        then()

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def _read_some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1024)
    except OSError:
        return b""
