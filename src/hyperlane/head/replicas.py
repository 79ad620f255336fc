"""`ReplicaSet`: several heads of one model, each with its own pipeline, as one.

Chooses the head that a request goes to, and the one that goes on with it when its pipeline is lost. Knows no ring.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import astuple, replace

from hyperlane.core import Endings, GenerationRequest, HeadStatus, ModelFacts, Refusals
from hyperlane.errors import Overloaded, PipelineLost
from hyperlane.head.head import Head
from hyperlane.head.routing import Route, choose, common_unit
from hyperlane.head.sequence import Sequence as Request
from hyperlane.head.streams import Stream
from hyperlane.head.timings import FrameTiming

CROWDED_AFTER_S = 2.0
"""So long a request whose pipeline was lost waits for its own one, or for a free slot of another, before it queues."""


class ReplicaSet:
    """As a `Head` to those who ask for answers. Every method may be called from any thread.

    `heads`: at least one, with one model and one source of ids; each is attached and paused by itself.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        self.heads = tuple(heads)
        self.model: ModelFacts = heads[0].model
        for number, head in enumerate(self.heads):
            head.elsewhere = functools.partial(self._take_over, number)

    @property
    def context(self) -> int:
        """Tokens that a slot holds, on every replica."""
        return self.heads[0].context

    def submit(self, request: GenerationRequest) -> Stream:
        """Queue a request that `validation.check_request` accepted, with the replica that suits it best.

        Raises:
            Overloaded: every queue is full; the message is that of the one that would have been chosen.
            PipelineLost: no pipeline is running, and none is expected.

        """
        length = len(request.prompt)
        routes = self._routes(range(len(self.heads)), list(request.prompt))
        accepting = [route for route in routes if route.accepts]
        while accepting:
            chosen = choose(accepting, length)
            try:
                return self.heads[chosen.number].submit(request)
            except (Overloaded, PipelineLost):  # since it was looked at
                accepting.remove(chosen)
        return self.heads[choose(routes, length).number].submit(request)

    def _take_over(self, origin: int, request: Request, waited_s: float) -> bool:
        """Another head's request, for one with a free slot; after a while for any that serves."""
        others = [number for number in range(len(self.heads)) if number != origin]
        routes = [route for route in self._routes(others, None) if route.serves]
        if waited_s < CROWDED_AFTER_S:
            routes = [route for route in routes if route.has_room]
        return bool(routes) and self.heads[choose(routes, len(request.tokens)).number].adopt(request)

    def _routes(self, numbers: Sequence[int], prompt: list[int] | None) -> list[Route]:
        routes = [self.heads[number].route(number, prompt) for number in numbers]
        rates = common_unit([route.rate for route in routes])
        return [replace(route, rate=rate) for route, rate in zip(routes, rates, strict=True)]

    # --- what it knows -----------------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether a real token went through every stage of some replica's running plan."""
        return any(head.ready() for head in self.heads)

    def recent_frames(self) -> tuple[FrameTiming, ...]:
        """The last frames of all pipelines, replica by replica."""
        return tuple(frame for head in self.heads for frame in head.recent_frames())

    def status(self) -> HeadStatus:
        """What all of them know of themselves now.

        Raises:
            PipelineLost: some replica had no plan yet.

        """
        return combined([head.status() for head in self.heads])

    def close(self) -> None:
        """End every request with an error and accept no more. Idempotent."""
        for head in self.heads:
            head.elsewhere = None
        for head in self.heads:
            head.close()


def combined(statuses: Sequence[HeadStatus]) -> HeadStatus:
    """One status of all replicas: counts and slots together, plan and times those of the first one that is ready.

    A single one is itself. What a request did before it moved to another replica is counted with the first one.
    """
    if len(statuses) == 1:
        return statuses[0]
    shown = next((status for status in statuses if status.ready), statuses[0])
    endings = [status.endings for status in statuses]
    refusals = [status.refusals for status in statuses]
    return replace(
        shown,
        ready=any(status.ready for status in statuses),
        queued=sum(status.queued for status in statuses),
        active=sum(status.active for status in statuses),
        slots=sum(status.slots for status in statuses),
        requests_admitted=sum(status.requests_admitted for status in statuses),
        requests_ended=sum(status.requests_ended for status in statuses),
        requests_refused=sum(status.requests_refused for status in statuses),
        prompt_tokens=sum(status.prompt_tokens for status in statuses),
        completion_tokens=sum(status.completion_tokens for status in statuses),
        logits_refetched=sum(status.logits_refetched for status in statuses),
        losses=sum(status.losses for status in statuses),
        requests_continued=sum(status.requests_continued for status in statuses),
        cached_tokens=sum(status.cached_tokens for status in statuses),
        endings=Endings(*(sum(counts) for counts in zip(*map(astuple, endings), strict=True))),
        refusals=Refusals(*(sum(counts) for counts in zip(*map(astuple, refusals), strict=True))),
        replicas=tuple(statuses),
    )
