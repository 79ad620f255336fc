"""`Head`: requests of one model from any thread, served by one pipeline after another.

Owns the head's thread and the life of its pipelines. Knows no engine, no HTTP and no tokenizer but its words.
Whatever happens to a pipeline, every accepted request ends exactly once: it waits for the next one and goes on there.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from hyperlane.core import Achieved, Failed, GenerationRequest, HeadStatus, Kept, ModelFacts, Plan, SamplingParams
from hyperlane.errors import HyperlaneError, Overloaded, PipelineLost, StepOverdue
from hyperlane.head.deadline import LEAST_S, least_after
from hyperlane.head.gap import Gap
from hyperlane.head.intake import Intake
from hyperlane.head.lane import Lane
from hyperlane.head.loop import Loop
from hyperlane.head.options import Counters, HeadOptions, Words
from hyperlane.head.requests import Requests
from hyperlane.head.routing import Route
from hyperlane.head.sequence import Sequence
from hyperlane.head.streams import Stream
from hyperlane.head.timings import FrameTiming
from hyperlane.wire.link import Ring

log = logging.getLogger(__name__)

NO_PIPELINE = "no pipeline is running yet; try again when the workers have loaded the model"
STOPPED = "the head was stopped"
LOST = "the pipeline was lost: {cause}; send the request again"

PROBE = GenerationRequest("warm-up", (0,), SamplingParams(temperature=0.0), max_tokens=1, ignore_eos=True)

SWITCH_S = 60.0
"""How long requests wait at least when a pipeline was let go for another one."""


ASKED_AGAIN_S = 0.25
"""Between two tries to hand over requests that wait."""

Elsewhere = Callable[[Sequence, float], bool]
"""Takes over a request that has waited for so many seconds, or does not."""


class _Attached(NamedTuple):
    """A pipeline that was handed over. `gone` is set when its ring is closed."""

    loop: Loop
    ring: Ring
    gone: threading.Event


class Head:
    """Serves requests with one pipeline at a time. Every method may be called from any thread.

    `on_lost`: called from the head's thread with the cause when a pipeline failed; it may `attach` the next one.
    Requests wait for that for `HeadOptions.recovery_timeout_s`. `clock`: seconds. `entropy`: a seed for a request that
    has none. `ids`: numbers of requests; heads that hand requests to one another have them from one source.
    """

    def __init__(
        self,
        model: ModelFacts,
        words: Words,
        options: HeadOptions | None = None,
        *,
        on_lost: Callable[[Exception], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        entropy: Callable[[], int] = lambda: secrets.randbits(63),
        ids: Iterator[int] | None = None,
    ) -> None:
        self.model = model
        self.options = options or HeadOptions()
        self._words = words
        self._on_lost = on_lost
        self._clock = clock
        self._entropy = entropy
        self._started_s = clock()
        self._ids = itertools.count() if ids is None else ids
        self.elsewhere: Elsewhere | None = None
        """Takes requests over whose pipeline is gone; set before the first pipeline."""
        self._intake = Intake(NO_PIPELINE)
        self._counters = Counters()
        self._requests = Requests(self._intake, self._counters, clock)
        self._guard = threading.Lock()
        self._nudge = threading.Event()
        self._next: _Attached | None = None
        self._running: _Attached | None = None
        self._last: Loop | None = None
        self._thread: threading.Thread | None = None
        self._ending: str | None = None
        self._least_step_s = self._hasty_s = LEAST_S
        self._closed = False

    # --- pipelines ---------------------------------------------------------------------------------------------

    def attach(self, ring: Ring, plan: Plan, epoch: int, kept: Kept | None = None) -> None:
        """Serve with this pipeline from now on, and go on with what waits; the head closes the ring when it is done.

        `kept`: what its stages hold of the pipeline before it.

        Raises:
            RuntimeError: another pipeline is running (`pause` or `detach` it first), or the head is closed.

        """
        with self._guard:
            if self._closed or self._running is not None or self._next is not None:
                raise RuntimeError("the head is closed" if self._closed else "another pipeline is running; detach it")
            policy = self.options.policy(plan)
            reuse = self.options.prefix_cache
            loop = Loop(
                ring,
                plan,
                epoch,
                policy,
                requests=self._requests,
                eos_ids=self._words.eos_ids,
                reuse=reuse,
                least_step_s=self._least_step_s,
                kept=kept,
            )
            self._next, self._last = _Attached(loop, ring, threading.Event()), loop
            self._intake.open(self._nudge.set, plan.slots, self.options.queue)
            self._nudge.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="head", daemon=True)
                self._thread.start()

    def switch(self, ring: Ring, plan: Plan, epoch: int, warm_up_timeout_s: float = 60.0) -> None:
        """Serve with this pipeline from now on, and prove it with a token; blocks for that.

        Requests of one that ran before go on with this one.

        Raises:
            HyperlaneError: no token came through; the pipeline stays attached unless its ring failed.

        """
        self.pause()
        self.attach(ring, plan, epoch)
        self.warm_up(warm_up_timeout_s)

    def pause(self, verdict: HyperlaneError | None = None) -> None:
        """Let the running pipeline go between two steps, its ring closed; requests wait for the next one. Idempotent.

        `verdict`: what is wrong with it; it then counts as lost, and `on_lost` is told.
        """
        with self._guard:
            running = self._running or self._next
            if running is not None:
                running.loop.stop(verdict)
        if running is not None:
            running.gone.wait()

    def detach(self, reason: str = STOPPED) -> None:
        """End the running pipeline: its requests fail with `reason`, its ring is closed. Idempotent."""
        with self._guard:
            thread, running = self._thread, self._running
            if thread is None:
                return
            self._ending = reason
            if running is not None:
                running.loop.stop()
            self._nudge.set()
        if thread is not threading.current_thread():
            thread.join()

    def close(self) -> None:
        """End every request with an error and accept no more. Idempotent."""
        self._closed = True
        self.detach()

    # --- the head's thread -------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """One pipeline after another, and the gaps between them, until `detach`."""
        gap = Gap(self._requests, (), 0.0, None)
        while (attached := self._await(gap)) is not None:
            attached.loop.take_over(gap.end())
            began_s = self._clock()
            cause = self._run(attached.loop)
            lasted_s, overdue = self._clock() - began_s, isinstance(cause, StepOverdue)
            self._hasty_s = least_after(self._least_step_s, lasted_s, overdue=False)
            self._least_step_s = least_after(self._least_step_s, lasted_s, overdue=overdue)
            gap = self._let_go(attached, cause)
            self._counters.losses += cause is not None
            if cause is not None and self._on_lost is not None:
                self._on_lost(cause)
        with self._guard:
            reason, self._ending, self._thread = self._ending or STOPPED, None, None
            late = self._requests.shut(reason)
        self._requests.fail([*gap.end(), *late], reason, None)

    def _await(self, gap: Gap) -> _Attached | None:
        """The next pipeline; None after `detach`. Requests wait for it meanwhile."""
        while True:
            self._nudge.clear()
            wait_s = gap.tend()
            if self.elsewhere is not None and not gap.is_empty:
                gap.hand_over(self.elsewhere)
                wait_s = ASKED_AGAIN_S if wait_s is None else min(wait_s, ASKED_AGAIN_S)
            with self._guard:
                attached, self._next = self._next, None
                if self._ending is not None:
                    if attached is not None:
                        attached.ring.close()
                    return None
                if attached is not None:
                    self._running = attached
                    self._intake.open(attached.ring.wake, attached.loop.plan.slots, self.options.queue)
                    attached.ring.wake()  # for what came just before
                    return attached
            self._nudge.wait(wait_s)

    def _run(self, loop: Loop) -> Exception | None:
        """The supervisor of the loop. What ended it, a bug included; None if it was told to stop."""
        try:
            loop.run()
        except HyperlaneError as error:
            loop.publish()
            return error
        except Exception as error:
            log.exception("the head's loop failed")
            return error
        return None

    def _let_go(self, attached: _Attached, cause: Exception | None) -> Gap:
        """Close a pipeline's ring and keep its requests; where nothing will follow they end now."""
        patience_s = self._patience_s(cause)
        left = attached.loop.left()
        with self._guard:
            self._running = None
            if patience_s:
                self._intake.open(self._nudge.set, attached.loop.plan.slots, self.options.queue)
            else:
                left += self._requests.shut(LOST.format(cause=cause))
            attached.ring.close()
        gap = Gap(self._requests, left, patience_s, cause)
        if self.elsewhere is not None and isinstance(cause, HyperlaneError):
            gap.hand_over(self.elsewhere)
        gap.tend()
        attached.gone.set()
        return gap

    def _patience_s(self, cause: Exception | None) -> float:
        if cause is None:
            return max(self.options.recovery_timeout_s, SWITCH_S)
        # A bug would meet the same request again.
        return self.options.recovery_timeout_s if isinstance(cause, HyperlaneError) else 0.0

    # --- requests ----------------------------------------------------------------------------------------------

    def submit(self, request: GenerationRequest) -> Stream:
        """Queue a request that `validation.check_request` accepted.

        Raises:
            Overloaded: the queue is full.
            PipelineLost: no pipeline is running, and none is expected.

        """
        return self._submit(request)

    def _submit(self, request: GenerationRequest, *, is_probe: bool = False) -> Stream:
        length, seed = len(request.prompt), request.sampling.seed
        sequence = Sequence(
            request,
            Lane(next(self._ids), length, length),
            seed=self._entropy() if seed is None else seed,
            limit=min(self.context, length + (request.max_tokens or self.context)),
            vocab=self.model.vocab,
            token_bytes=self._words.token_bytes,
            submitted_s=self._clock(),
            is_probe=is_probe,
        )
        self._intake.accept(sequence)
        return sequence.stream

    def adopt(self, sequence: Sequence) -> bool:
        """Go on with a request of another head of the same model, which holds no slot there; False: nothing runs here.

        Its head must not be locked by the caller.
        """
        with self._guard:
            serves = (self._running or self._next) is not None and self._ending is None
            return serves and self._intake.adopt(sequence)

    def warm_up(self, timeout_s: float = 60.0) -> None:
        """Send one token through every stage; the head is `ready` then.

        Raises:
            HyperlaneError: what became of it.

        """
        stream = self._submit(PROBE, is_probe=True)
        try:
            event = stream.last(timeout_s)
        except TimeoutError as error:
            stream.cancel()
            raise PipelineLost(f"no token came through the stages within {timeout_s:g} s") from error
        if isinstance(event, Failed):
            raise event.error

    def prove(self) -> None:
        """As `warm_up`, behind the requests that wait, and without waiting for it."""
        with suppress(Overloaded, PipelineLost):  # requests prove it as well; a loss is told to `on_lost`
            self._submit(PROBE, is_probe=True)

    def excuse(self) -> None:
        """The step that was given up last was so rightly: the next ones need no more time. Before `attach`."""
        self._least_step_s = self._hasty_s

    def idle(self) -> bool:
        """Whether no request waits or runs."""
        return self._intake.accepted == 0

    def done(self) -> tuple[Achieved, int]:
        """What the last plan did of late, and how many tokens were generated since the start."""
        achieved = self._last.achieved() if self._last is not None else Achieved()
        return achieved, self._counters.completion_tokens

    # --- what it knows -----------------------------------------------------------------------------------------

    @property
    def context(self) -> int:
        """Tokens that a slot of the last plan holds; the model's own before there was one."""
        return self._last.plan.context if self._last is not None else self.model.context

    def route(self, number: int, prompt: list[int] | None = None) -> Route:
        """What a choice between heads goes by. `prompt` None: of a request that no slot can help."""
        loop, running = self._last, self._running or self._next
        slots, said = (loop.plan.slots, loop.plan.prediction) if loop is not None else (1, None)
        held = loop.holds(prompt) if loop is not None and running is not None and prompt is not None else 0
        serves = running is not None and running.loop is loop
        rate, intake = said.many_rate if said else 0.0, self._intake
        return Route(number, serves, intake.accepted, slots, rate, held, intake.has_place)

    def ready(self) -> bool:
        """Whether a real token went through every stage of the running plan."""
        running = self._running
        return running is not None and running.loop.proved

    def recent_frames(self) -> tuple[FrameTiming, ...]:
        """The last frames of the last pipeline, in the order in which they came back; none before there was one."""
        return self._last.timings.recent() if self._last is not None else ()

    def status(self) -> HeadStatus:
        """What the head knows of itself now.

        Raises:
            PipelineLost: there was no plan yet.

        """
        loop, counters = self._last, self._counters
        if loop is None:
            raise PipelineLost(NO_PIPELINE)
        active, counts = loop.active, self._intake.counter.snapshot()
        return HeadStatus(
            model=self.model.name,
            ready=self.ready(),
            plan=loop.plan,
            epoch=loop.epoch,
            stages=loop.timings.stages(loop.plan),
            queued=max(0, self._intake.accepted - active),
            active=active,
            slots=loop.plan.slots,
            requests_admitted=counts.admitted,
            requests_ended=counts.endings.total,
            requests_refused=counts.refusals.total,
            prompt_tokens=counters.prompt_tokens,
            completion_tokens=counters.completion_tokens,
            logits_refetched=counters.logits_refetched,
            requests_continued=counters.continued,
            cached_tokens=counters.cached_tokens,
            ring_us=loop.timings.ring_us,
            uptime_s=self._clock() - self._started_s,
            hop_us=loop.timings.hop_us,
            hop_p99_us=loop.timings.hop_p99_us,
            sent_bytes_per_token=loop.timings.sent_bytes_per_token,
            losses=counters.losses,
            achieved=loop.achieved(),
            endings=counts.endings,
            refusals=counts.refusals,
        )
