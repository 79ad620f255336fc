"""Worker processes with the toy model, and what a head over them is asked: for tests with real processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from hyperlane import config
from hyperlane.cluster.announce import Child
from hyperlane.core import Address, Event, EventStream, Finished, GenerationRequest, SamplingParams, TextDelta
from hyperlane.node import Serving

PROMPT = tuple(range(20, 40))
WITHIN_S = 60.0


def serve_config(model: str, **settings: object) -> config.ServeConfig:
    """One thread a worker and two slots."""
    return config.load(config.ServeConfig, model=model, threads=1, slots=2, **settings)


def asked(serving: Serving, count: int = 24) -> EventStream:
    """The stream of a greedy answer to the usual prompt."""
    params = SamplingParams(temperature=0.0)
    return serving.service.submit(GenerationRequest("r", PROMPT, params, max_tokens=count, ignore_eos=True))


def answer(serving: Serving, count: int = 24) -> list[int]:
    """The tokens of a greedy answer to the usual prompt."""
    return rest(asked(serving, count))


def rest(stream: Iterable[Event]) -> list[int]:
    """What is still to come of an answer; it must end well."""
    tokens: list[int] = []
    for event in stream:
        if isinstance(event, TextDelta):
            tokens += event.tokens
        else:
            assert isinstance(event, Finished), event
    return tokens


def children() -> list[psutil.Process]:
    """Processes below this one, without the one that the standard library starts once and keeps."""
    below = psutil.Process().children(recursive=True)
    return [child for child in below if not any("resource_tracker" in part for part in _command_of(child))]


def _command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


class ToyWorkers:
    """Workers that a test starts itself, as if on other machines. `children` and `ports`: in their order."""

    def __init__(self, command: Sequence[str], logs: Path) -> None:
        """`command` starts one; `logs`: a folder for what they say."""
        self._command = command
        self._logs = logs
        self.children: list[Child] = []
        self.ports: list[int] = []

    def start(self, **environ: str) -> Address:
        """One more, with these variables; its control address when it is ready."""
        log = self._logs / f"toy-{len(self.children)}.log"
        child = Child([*self._command, "--listen", "127.0.0.1:0", "--announce"], log, {**os.environ, **environ})
        self.children.append(child)
        address = child.announcement(time.monotonic() + WITHIN_S).address
        self.ports.append(address.port)
        return address

    def kill(self, index: int) -> None:
        """As if its machine lost power."""
        psutil.Process(self.children[index].pid).kill()

    def stop(self) -> None:
        """End them all."""
        for child in self.children:
            child.stop(time.monotonic() + 10)
