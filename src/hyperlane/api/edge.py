"""What all routes share: the generator behind them, the model's names, and the requests that are running.

Knows no path and no body.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar

from hyperlane import __version__
from hyperlane.api.answers import Answers
from hyperlane.api.chunks import Identity
from hyperlane.api.errors import ShuttingDown
from hyperlane.api.keys import KeyRing
from hyperlane.api.limits import Account
from hyperlane.config import ApiConfig
from hyperlane.core import EventStream, GenerationRequest, Plan, TextGenerator
from hyperlane.errors import UnknownModel

INLINE_CHARACTERS = 4096
"""Longer texts are turned into tokens in a thread, so that running streams do not wait for it."""

Result = TypeVar("Result")


class Edge:
    """One generator as HTTP serves it."""

    def __init__(self, generator: TextGenerator, config: ApiConfig, aliases: Sequence[str] = ()) -> None:
        self.generator = generator
        self.config = config
        self.created = int(time.time())
        self.keys = KeyRing(config)
        self._names = {_plain(name) for name in (generator.facts.name, *config.names, *aliases)}
        self._running: weakref.WeakSet[Answers] = weakref.WeakSet()
        self._closing = False
        self._known: tuple[Plan, str] | None = None

    @property
    def model(self) -> str:
        """The name under which the model is listed, and which answers carry."""
        return self.generator.facts.name

    def check_model(self, name: str) -> None:
        """Refuse a name that is not the served model's.

        Raises:
            UnknownModel: with the name that is.

        """
        if _plain(name) not in self._names:
            raise UnknownModel(f"The model '{name}' is not served here; the one that is: '{self.model}'.")

    def identify(self, prefix: str) -> Identity:
        """The identity of a new answer."""
        return Identity(f"{prefix}-{secrets.token_hex(12)}", int(time.time()), self.model, self._fingerprint())

    def _fingerprint(self) -> str:
        """Equal as long as the same seed gives the same tokens: same version, weights, stages and devices."""
        plan = self.generator.status().plan
        if self._known is None or self._known[0] is not plan:
            stages = ((str(stage.layers), stage.worker.provider, stage.worker.element) for stage in plan.stages)
            said = repr((__version__, plan.model.fingerprint, [tuple(map(str, stage)) for stage in stages]))
            said += repr([str(precision) for precision in plan.precisions])
            self._known = plan, "fp_" + hashlib.sha256(said.encode()).hexdigest()[:12]
        return self._known[1]

    async def encoded(self, encode: Callable[[], Result], characters: int) -> Result:
        """Run a tokenizer's function, in a thread when the text is long."""
        if characters <= INLINE_CHARACTERS:
            return encode()
        return await asyncio.to_thread(encode)

    def submit(self, requests: Sequence[GenerationRequest], account: Account | None) -> Answers:
        """Queue all sequences of a request, or none. `account`: of the key that pays.

        Raises:
            HyperlaneError: what `TextGenerator.submit` raises, the key's limits are reached, or the server is stopping.

        """
        if self._closing:
            raise ShuttingDown("The server is shutting down.")
        if account is None:
            streams = self._streams(requests)
        else:
            prompts = {id(request.prompt): len(request.prompt) for request in requests}
            cost = len(requests), sum(prompts.values())
            account.admit(*cost, time.monotonic())
            try:
                streams = self._streams(requests)
            except Exception:
                account.give_back(*cost)
                raise
        answers = Answers(streams, self.config.heartbeat_s, account)
        self._running.add(answers)
        return answers

    def _streams(self, requests: Sequence[GenerationRequest]) -> list[EventStream]:
        streams: list[EventStream] = []
        try:
            for request in requests:
                streams.append(self.generator.submit(request))
        except Exception:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return sum(answers.running for answers in self._running)

    def close(self) -> None:
        """End every running answer with an error that says so, and refuse new ones."""
        self._closing = True
        for answers in tuple(self._running):
            answers.fail(ShuttingDown("The server is shutting down; the answer was cut off."))


def _plain(name: str) -> str:
    return name.casefold().removesuffix(".gguf")
