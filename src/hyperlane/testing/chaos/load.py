"""Requests of every sort, from the official client, again and again; each answer is held against the undisturbed one.

Knows no fault: it notes when streams stood still, and what ended otherwise than it should.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import openai

SHORT = "Once upon a time there was a lighthouse."
LONG = " ".join(f"The {thing} of the {place} is old and grey." for place in ("north", "sea") for thing in SHORT.split())
TIMEOUT_S = 180.0
"""A request that takes longer counts as hung."""

LEARNERS = 4
NOTED_S = 0.02
"""Pauses of streams that are shorter are not noted."""


@dataclass(frozen=True, slots=True)
class Sort:
    """One sort of request. `abandons`: the client goes away after a few chunks."""

    name: str
    prompt: str
    tokens: int
    stream: bool = True
    chat: bool = False
    sampling: dict[str, float] = field(default_factory=dict)
    abandons: bool = False

    @property
    def is_long(self) -> bool:
        """Whether its prompt takes several frames."""
        return self.prompt == LONG


GREEDY: dict[str, float] = {"temperature": 0.0}
SEEDED: dict[str, float] = {"temperature": 0.9, "seed": 7}
HOT: dict[str, float] = {"temperature": 1.6, "seed": 8, "presence_penalty": 1.0, "frequency_penalty": 0.4}

SORTS = (
    Sort("short, greedy, streamed", SHORT, 60, sampling=GREEDY),
    Sort("short, seeded, whole", SHORT, 40, stream=False, sampling=SEEDED),
    Sort("chat, seeded, streamed", SHORT, 60, chat=True, sampling=SEEDED),
    Sort("chat, hot, whole", SHORT, 30, stream=False, chat=True, sampling=HOT),
    Sort("long, greedy, whole", LONG, 20, stream=False, sampling=GREEDY),
    Sort("long, greedy, streamed", LONG, 30, sampling=GREEDY),
    Sort("long, seeded, streamed", LONG, 30, sampling=HOT),
    Sort("abandoned", SHORT, 60, sampling=GREEDY, abandons=True),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client is told."""

    text: str
    reason: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Pause:
    """A stream stood still from `began_s` to `ended_s`; `first`: it was its first token that was awaited."""

    began_s: float
    ended_s: float
    first: bool


@dataclass(slots=True)
class Tally:
    """What became of the requests. `wrong` and `failed` say which and how; `latencies_s` of those that ended well."""

    sent: int = 0
    ended: int = 0
    abandoned: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    latencies_s: list[tuple[float, float]] = field(default_factory=list)
    sorts: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Waiting:
    """A request that is under way. `moved_s`: when its last token came; 0 before the first, and if it is not told."""

    sort: Sort
    began_s: float
    moved_s: float = 0.0


class Load:
    """So many clients at once, each with one request after another, until `stop`."""

    def __init__(self, url: str, model: str, sorts: Sequence[Sort] = SORTS, *, exact: bool = True) -> None:
        """`exact`: answers must be the undisturbed ones; else as long and ended as these, and begun like them."""
        self._client = openai.OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=TIMEOUT_S)
        self._model = model
        self._sorts = sorts
        self._exact = exact
        self._expected: dict[str, Answer] = {}
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._ending = False
        self._going = threading.Event()
        self._going.set()
        self._waiting: dict[int, _Waiting] = {}
        self.rest_s = 0.0
        """Each client waits so long between two requests."""
        self.tally = Tally()
        self.pauses: list[Pause] = []

    def learn(self) -> None:
        """Ask for every sort once, undisturbed."""
        with ThreadPoolExecutor(LEARNERS) as learners:
            answers = learners.map(lambda sort: self._ask(-1, sort, whole=True), self._sorts)
        self._expected = dict(zip((sort.name for sort in self._sorts), answers, strict=True))
        self.pauses.clear()

    def start(self, clients: int, seed: int) -> None:
        """Let so many clients begin."""
        for number in range(clients):
            rng = random.Random(f"{seed}/{number}")
            thread = threading.Thread(target=self._be_client, args=(number, rng), name=f"client-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def pause(self) -> None:
        """Begin no further request; wait until all have ended."""
        self._going.clear()
        until_s = time.monotonic() + TIMEOUT_S
        while self.open() and time.monotonic() < until_s:
            time.sleep(0.005)

    def go_on(self) -> None:
        """After `pause`."""
        self._going.set()

    def stop(self) -> list[str]:
        """End; the names of clients that hang."""
        self._ending = True
        self._going.set()
        until_s = time.monotonic() + TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        hung = [thread.name for thread in self._threads if thread.is_alive()]
        self._client.close()
        return hung

    def open(self) -> int:
        """Requests that are under way."""
        with self._lock:
            return len(self._waiting)

    def has_prefill(self) -> bool:
        """Whether a long prompt is being computed."""
        with self._lock:
            return any(one.sort.is_long and not one.moved_s for one in self._waiting.values())

    def has_decode(self) -> bool:
        """Whether a stream has begun."""
        with self._lock:
            return any(one.moved_s > 0 for one in self._waiting.values())

    def asked(self) -> set[tuple[int, float]]:
        """Which requests are under way."""
        with self._lock:
            return {(number, request.began_s) for number, request in self._waiting.items()}

    def have_moved(self, asked: Collection[tuple[int, float]], moment_s: float) -> bool:
        """Whether each of these requests has ended, or got a token since then."""
        with self._lock:
            return not any(
                (number, request.began_s) in asked and request.moved_s <= moment_s
                for number, request in self._waiting.items()
            )

    # --- one client ------------------------------------------------------------------------------------------

    def _be_client(self, number: int, rng: random.Random) -> None:
        while True:
            self._going.wait()
            if self._ending:
                return
            self._serve_one(number, rng.choice(self._sorts))
            time.sleep(self.rest_s * rng.uniform(0.5, 1.5))

    def _serve_one(self, number: int, sort: Sort) -> None:
        began_s = time.monotonic()
        with self._lock:
            self.tally.sent += 1
            self._waiting[number] = _Waiting(sort, began_s)
        try:
            answer = self._ask(number, sort, whole=False)
        except Exception as error:  # noqa: BLE001 (whatever a client is told is noted)
            with self._lock:
                self.tally.failed.append(f"{sort.name}: {type(error).__name__}: {error}")
        else:
            self._judge(sort, answer, began_s)
        with self._lock:
            self.tally.ended += 1
            del self._waiting[number]

    def _judge(self, sort: Sort, answer: Answer, began_s: float) -> None:
        expected = self._expected[sort.name]
        now_s = time.monotonic()
        with self._lock:
            self.tally.sorts[sort.name] += 1
            if sort.abandons:
                self.tally.abandoned += 1
                right = expected.text.startswith(answer.text) or not self._exact
            else:
                self.tally.latencies_s.append((began_s, now_s - began_s))
                right = answer == expected if self._exact else _is_as_long(answer, expected)
            if not right:
                self.tally.wrong.append(f"{sort.name}: {answer}, not {expected}")

    def _ask(self, number: int, sort: Sort, *, whole: bool) -> Answer:
        given: dict[str, Any] = {"model": self._model, "max_tokens": sort.tokens, **sort.sampling}
        given |= {"stream": sort.stream, "extra_body": {"ignore_eos": True}}
        began_s = time.monotonic()
        if sort.stream:
            given["stream_options"] = {"include_usage": True}
        if sort.chat:
            given["messages"] = [{"role": "user", "content": sort.prompt}]
            told = self._client.chat.completions.create(**given)
        else:
            told = self._client.completions.create(prompt=sort.prompt, **given)
        if not sort.stream:
            return Answer(_text(told.choices[0]), told.choices[0].finish_reason, told.usage.completion_tokens)
        return self._read(number, sort, told, began_s, whole=whole)

    def _read(
        self,
        number: int,
        sort: Sort,
        told: Any,  # noqa: ANN401 (the client's stream)
        last_s: float,
        *,
        whole: bool,
    ) -> Answer:
        texts: list[str] = []
        reason, tokens = "", 0
        with told:
            for chunk in told:
                now_s = time.monotonic()
                if now_s - last_s > NOTED_S:
                    self.pauses.append(Pause(last_s, now_s, not texts))
                last_s = now_s
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
                for choice in chunk.choices:
                    reason = choice.finish_reason or reason
                    texts += filter(None, (_text(choice),))
                if texts and number in self._waiting:
                    self._waiting[number].moved_s = now_s
                if sort.abandons and not whole and len(texts) >= 5:
                    break
        return Answer("".join(texts), reason, tokens)


def _text(choice: Any) -> str:  # noqa: ANN401 (four classes of the client)
    for name in ("delta", "message"):
        if hasattr(choice, name):
            return getattr(choice, name).content or ""
    return choice.text or ""


def _is_as_long(answer: Answer, expected: Answer) -> bool:
    return (answer.reason, answer.tokens) == (expected.reason, expected.tokens)
