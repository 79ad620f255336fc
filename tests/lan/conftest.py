"""What tests in a LAN of namespaces share: the LAN, and machines of it that run the real program."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hyperlane.testing.lan import Host, Lan, missing
from hyperlane.testing.tiny_models import write_tiny_model

WITHIN_S = 60.0
"""How long anything may take before it counts as stuck; what it took is printed."""

_missing = missing()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _missing:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=_missing))


@pytest.fixture
def lan():
    with Lan() as made:
        yield made


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf"))


class Machine:
    """A host with a home of its own, on which `hyperlane` runs."""

    def __init__(self, host: Host, home: Path, name: str | None = None) -> None:
        self.host = host
        self.home = home
        variables = {key: value for key, value in os.environ.items() if not key.startswith("HYPERLANE_")}
        # All namespaces are of one system: what tells machines apart must be said.
        self.environ = {**variables, "HYPERLANE_HOME": str(home), "HYPERLANE_PATHS_MACHINE": name or host.name}
        self.environ["HYPERLANE_SERVE_USE"] = "all"  # however fast one of them alone would be with a tiny model
        self.environ["HYPERLANE_WORKER_THREADS"] = self.environ["HYPERLANE_SERVE_THREADS"] = "1"

    def hyperlane(self, *words: str, code: int | None = 0, **environ: str) -> str:
        """Run a command to its end; its standard output."""
        ran = subprocess.run(
            self.host.command([sys.executable, "-m", "hyperlane", *words]),
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        assert code is None or ran.returncode == code, f"{words}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def doctor(self, *words: str, **environ: str) -> list[dict[str, str]]:
        """The findings of `hyperlane doctor`."""
        return json.loads(self.hyperlane("doctor", "--json", *words, code=None, **environ))["findings"]

    def program(self, *words: str, **environ: str) -> Running:
        """Any program here."""
        return Running(self, list(words), environ)

    def start(self, *words: str, **environ: str) -> Running:
        return Running(self, [sys.executable, "-m", "hyperlane", *words], environ)

    def python(self, code: str, *, check: bool = True, **environ: str) -> str:
        """What a piece of Python prints on this machine."""
        words = self.host.command([sys.executable, "-c", code])
        environ = {**self.environ, **environ}
        ran = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=WITHIN_S, check=check)
        return ran.stdout


class Running:
    """A program on a machine, whose lines are read as they come."""

    def __init__(self, machine: Machine, words: list[str], environ: dict[str, str]) -> None:
        self.said: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._process = machine.host.start(words, {**machine.environ, **environ}, errors=subprocess.STDOUT)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, words: str) -> str:
        """The next line that holds these words."""
        while True:
            line = self.next_line()
            if words in line:
                return line

    def next_line(self) -> str:
        line = self._lines.get(timeout=WITHIN_S)
        assert line is not None, f"it ended:\n{''.join(self.said)}"
        return line

    def say(self, words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()

    def end_input(self) -> None:
        """End its standard input, and wait until it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(WITHIN_S) == 0, "".join(self.said)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(WITHIN_S)
        self._reader.join(WITHIN_S)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(WITHIN_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line)
            self._lines.put(line)
        self._lines.put(None)


@pytest.fixture
def machine(lan, tmp_path):
    """Makes machines of the LAN by name."""

    def make(name: str, **plug) -> Machine:
        return Machine(lan.host(name, **plug), tmp_path / name)

    return make


class Watcher:
    """`watcher.py` on a machine: the head of a cluster that says whom it finds."""

    def __init__(self, machine: Machine, environ: dict[str, str]) -> None:
        self.machine = machine
        self.seen: list[dict] = []
        program = [sys.executable, "-W", "error", str(Path(__file__).with_name("watcher.py"))]
        self._running = Running(machine, program, environ)
        self.wait("looking")

    def wait(self, event: str, **where) -> dict:
        """The next line of an event whose fields are these."""
        while True:
            line = self._running.next_line()
            if not line.startswith("{"):
                continue
            said = json.loads(line)
            self.seen.append(said)
            if said["event"] == event and all(said[key] == value for key, value in where.items()):
                return said

    def token(self) -> str:
        self._running.say("token")
        return self.wait("token")["token"]

    def look(self) -> dict:
        """Everybody who is there."""
        self._running.say("look")
        return self.wait("there")

    def look_until(self, fits) -> dict:
        """As `look`, when it is as it should be."""
        deadline = time.monotonic() + WITHIN_S
        while not fits(there := self.look()):
            assert time.monotonic() < deadline, there
            time.sleep(0.2)
        return there

    def stop(self) -> None:
        self._running.end_input()


@pytest.fixture
def watcher(machine):
    """Makes heads that watch, by name."""
    return lambda name, **environ: Watcher(machine(name), environ)
