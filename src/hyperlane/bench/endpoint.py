"""Workloads against any endpoint that speaks OpenAI's chat API, ours or another: streamed, timed at the client.

Knows no tokenizer: prompts are words, and what they were in tokens is what the endpoint says it was.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

import httpx

from hyperlane.bench.workload import Arrivals, Sample, Workload, sample_of
from hyperlane.errors import ClusterError, UsageError

CONNECT_S, SILENCE_S = 10.0, 300.0
"""Seconds until an endpoint that does not answer is given up: to connect, and between two pieces of an answer."""

WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work number night point home water room mother area money story fact
month lot right study book eye job word business issue side kind head house service friend father
"""
"""Common words, one token each in most vocabularies."""

ASK = "Continue this list of words with as many more words as you can, and write nothing else: "


@dataclass(slots=True)
class _Told:
    """What an endpoint told of one request."""

    times: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Endpoint:
    """An endpoint at a base URL, with or without `/v1`. `model` None: the first one that it lists."""

    def __init__(self, url: str, model: str | None = None, key: str | None = None) -> None:
        """Ask what the endpoint serves.

        Raises:
            UsageError: the address is no HTTP address, the key is refused, or no model is served.
            ClusterError: nothing answers there, or not as OpenAI's API does.

        """
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"'{url}' is no HTTP address; write for instance http://127.0.0.1:8000/v1")
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
        self.model = model or self._first_model()

    def run(self, workload: Workload, number: int = 0) -> Sample:
        """Run a workload once, with prompts of its own. A stream that the model ends early counts as far as it went.

        Raises:
            UsageError, ClusterError: as the constructor, and when an answer holds no token.

        """
        return asyncio.run(self._run(workload, random.Random(f"{number} {time.time_ns()}")))

    def _first_model(self) -> str:
        try:
            answer = httpx.get(f"{self.url}/models", headers=self._headers, timeout=self._timeout)
            _check(answer.status_code, f"{self.url}/models", answer.text)
            return str(answer.json()["data"][0]["id"])
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ClusterError(
                f"{self.url}/models lists no model; name one: hyperlane bench MODEL --endpoint …"
            ) from error

    async def _run(self, workload: Workload, chance: random.Random) -> Sample:
        words = WORDS.split()
        prompts = [
            ASK + " ".join(chance.choice(words) for _ in range(workload.prompt_tokens)) for _ in range(workload.streams)
        ]
        began = time.perf_counter()
        limits = httpx.Limits(max_connections=workload.streams)
        async with httpx.AsyncClient(headers=self._headers, timeout=self._timeout, limits=limits) as client:
            told = await asyncio.gather(*(self._ask(client, prompt, workload.new_tokens) for prompt in prompts))
        if not all(one.times for one in told):
            raise ClusterError(f"{self.url}: an answer of {self.model} held no token")
        return sample_of([_arrivals(one) for one in told], began, sum(one.prompt_tokens for one in told))

    async def _ask(self, client: httpx.AsyncClient, prompt: str, tokens: int) -> _Told:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        told = _Told()
        try:
            async with client.stream("POST", f"{self.url}/chat/completions", json=body) as answer:
                if answer.is_error:
                    _check(answer.status_code, self.url, (await answer.aread()).decode(errors="replace"))
                async for line in answer.aiter_lines():
                    if line.startswith("data:") and line[5:].strip() != "[DONE]":
                        _note(told, json.loads(line[5:]))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ClusterError(f"{self.url} streams, but not as OpenAI's API does: {error}") from error
        return told

    def _unreachable(self, error: httpx.HTTPError) -> ClusterError:
        return ClusterError(f"{self.url}: {str(error) or type(error).__name__}; is a server running there?")


def _note(told: _Told, chunk: dict[str, object]) -> None:
    """Take in one event of a stream."""
    if "error" in chunk:
        raise ClusterError(f"the endpoint ended a request: {chunk['error']}")
    usage = chunk.get("usage")
    if isinstance(usage, dict):
        told.prompt_tokens = int(usage["prompt_tokens"])
        told.completion_tokens = int(usage["completion_tokens"])
    choices = chunk.get("choices")
    if isinstance(choices, list) and choices and choices[0]["delta"].get("content"):
        told.times.append(time.perf_counter())


def _arrivals(told: _Told) -> Arrivals:
    """Pieces of an answer may hold several tokens; they are taken to hold as many each."""
    each = max(1.0, told.completion_tokens / len(told.times))
    return Arrivals(tuple((when, each) for when in told.times))


def _check(status: int, url: str, text: str) -> None:
    if status in (401, 403):
        raise UsageError(f"{url} asks for a key; give the right one with --api-key")
    if status >= 400:
        raise ClusterError(f"{url} answers {status}: {text[:200]}")
