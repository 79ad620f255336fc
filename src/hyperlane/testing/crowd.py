"""Many clients at once against a running server: what each saw, and whether the server's figures say the same.

The clients are the official ones (`openai`), each with a connection of its own stream. Knows no model.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

PATIENCE_S = 600.0
"""Nothing that a client waits for may take longer."""


class Way(enum.StrEnum):
    """How a client behaves."""

    READS = "reads to the end"
    LEAVES = "leaves in mid-stream"
    HURRIES = "gives too little time"


class End(enum.StrEnum):
    """What became of a client, named as `core.Endings` and `core.Refusals` count it."""

    LENGTH = "length"
    STOP = "stop"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    REFUSED = "queue_full"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Asked:
    """What every client asks for. `gap_s`: between the starts of two clients. `retries`: after a refusal.

    `left_tokens`: of an answer that its client leaves: enough that it is not complete before. `hurried_s`: what a
    client gives that gives too little time.
    """

    model: str
    max_tokens: int = 32
    gap_s: float = 0.0
    retries: int = 0
    left_tokens: int = 450
    hurried_s: float = 0.2


@dataclass(frozen=True, slots=True)
class Seen:
    """What one client saw. Seconds since it asked; `first_s` None: no token came. `pieces` of text that came."""

    number: int
    end: End
    first_s: float | None
    took_s: float
    asked_s: float
    pieces: int
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Crowd:
    """All clients of one run, and the server's counts of the time: by name of ending or refusal, and `admitted`."""

    seen: tuple[Seen, ...]
    counted: Mapping[str, int]

    @property
    def ends(self) -> Counter[str]:
        """How many clients ended how."""
        return Counter(str(one.end) for one in self.seen)

    def wrong_figures(self) -> list[str]:
        """Where the server's counts are not what its clients saw; refusals are counted with every try."""
        expected: dict[str, int] = {str(end): self.ends[end] for end in End if end is not End.REFUSED}
        expected |= {"admitted": sum(expected.values()), "waiting": 0, "running": 0}
        wrong = [
            f"{name}: {self.counted[name]}, clients saw {count}"
            for name, count in expected.items()
            if self.counted[name] != count
        ]
        if self.counted[End.REFUSED] < self.ends[End.REFUSED]:
            wrong.append(f"refused: {self.counted[End.REFUSED]}, clients saw {self.ends[End.REFUSED]}")
        return wrong

    def overtaken(self) -> int:
        """The most places by which a client had its first token later than its turn."""
        served = sorted((one.asked_s + one.first_s, one.number) for one in self.seen if one.first_s is not None)
        turns = {number: turn for turn, number in enumerate(sorted(number for _, number in served))}
        return max((place - turns[number] for place, (_, number) in enumerate(served)), default=0)

    def first_s(self) -> tuple[float, float, float]:
        """Seconds to the first token: least, median, most."""
        firsts = [one.first_s for one in self.seen if one.first_s is not None]
        return (min(firsts), median(firsts), max(firsts)) if firsts else (0.0, 0.0, 0.0)


async def crowd(url: str, asked: Asked, ways: Sequence[Way]) -> Crowd:
    """Send one client for each way, and wait for all of them, and for the server to know that they are gone."""
    before = await counts(url)
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="unused", max_retries=asked.retries, timeout=PATIENCE_S
    ) as client:
        clients = [asyncio.create_task(_one(client, asked, way, number)) for number, way in enumerate(ways)]
        seen = tuple(await asyncio.wait_for(asyncio.gather(*clients), PATIENCE_S))
    after = await _settled(url)
    gauges = ("waiting", "running")
    return Crowd(seen, {name: after[name] - (0 if name in gauges else before[name]) for name in after})


async def counts(url: str) -> dict[str, int]:
    """The server's counts of requests, from its /metrics."""
    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
        text = (await http.get(f"{url}/metrics")).text
    found: dict[str, int] = {}
    for family in text_string_to_metric_families(text):
        name = family.name.removeprefix("hyperlane_requests_")
        for sample in family.samples:
            if name in ("ended", "refused"):
                found[sample.labels["reason"]] = int(sample.value)
            elif name in ("admitted", "waiting", "running"):
                found[name] = int(sample.value)
    return found


async def _settled(url: str) -> dict[str, int]:
    """The counts once nothing waits or runs: who left is gone within a step."""
    until_s = time.monotonic() + PATIENCE_S
    while (now := await counts(url))["waiting"] or now["running"]:
        if time.monotonic() > until_s:
            break
        await asyncio.sleep(0.05)
    return now


async def _one(client: openai.AsyncOpenAI, asked: Asked, way: Way, number: int) -> Seen:
    await asyncio.sleep(number * asked.gap_s)
    began_s = time.monotonic()
    first_s: float | None = None
    pieces, end, retry_after_s = 0, End.LOST, None
    extra = {"ignore_eos": True, **({"timeout_s": asked.hurried_s} if way is Way.HURRIES else {})}
    try:
        stream = await client.completions.create(
            model=asked.model,
            prompt=f"Client {number} says:",
            temperature=0,
            max_tokens=asked.left_tokens if way is Way.LEAVES else asked.max_tokens,
            stream=True,
            extra_body=extra,
        )
        async for chunk in stream:
            first_s = first_s if first_s is not None else time.monotonic() - began_s
            pieces += bool(chunk.choices[0].text)
            if chunk.choices[0].finish_reason:
                end = End(chunk.choices[0].finish_reason)
            elif way is Way.LEAVES:
                await stream.close()
                end = End.CANCELLED
                break
    except openai.RateLimitError as error:
        end, retry_after_s = End.REFUSED, float(error.response.headers["retry-after"])
    except openai.APIError as error:
        end = End.DEADLINE if error.code == "deadline_exceeded" else End.LOST
    return Seen(number, end, first_s, time.monotonic() - began_s, began_s, pieces, retry_after_s)


def summary_of(crowd: Crowd) -> dict[str, object]:
    """The figures of one run as plain data."""
    least_s, middle_s, most_s = crowd.first_s()
    return {
        "ends": dict(crowd.ends),
        "counted": dict(crowd.counted),
        "first_s": [least_s, middle_s, most_s],
        "overtaken": crowd.overtaken(),
        "took_s": max((one.asked_s + one.took_s for one in crowd.seen), default=0.0)
        - min((one.asked_s for one in crowd.seen), default=0.0),
        "wrong": crowd.wrong_figures(),
        "clients": [dataclasses.asdict(one) for one in crowd.seen],
    }
