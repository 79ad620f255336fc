"""`Head`: requests of one model from any thread, served by one pipeline after another.

Owns the head's thread and the life of its pipelines. Knows no engine, no HTTP and no tokenizer but its words.
Whatever happens to a pipeline, every accepted request ends exactly once.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable

from hyperlane.core import Failed, GenerationRequest, HeadStatus, ModelFacts, Plan, SamplingParams
from hyperlane.errors import HyperlaneError, PipelineLost
from hyperlane.head.intake import Intake
from hyperlane.head.loop import Loop
from hyperlane.head.options import Counters, HeadOptions, Words
from hyperlane.head.scheduler import Lane
from hyperlane.head.sequence import Sequence
from hyperlane.head.streams import Stream
from hyperlane.wire.link import Ring

log = logging.getLogger(__name__)

NO_PIPELINE = "no pipeline is running yet; try again when the workers have loaded the model"
STOPPED = "the head was stopped"


class Head:
    """Serves requests with one pipeline at a time. Every method may be called from any thread.

    `on_lost`: called from the head's thread with the cause when a pipeline failed, after every request has ended;
    it may `attach` the next one. `clock`: seconds. `entropy`: a seed for a request that has none.
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
    ) -> None:
        self.model = model
        self.options = options or HeadOptions()
        self._words = words
        self._on_lost = on_lost
        self._clock = clock
        self._entropy = entropy
        self._started_s = clock()
        self._ids = itertools.count()
        self._intake = Intake(NO_PIPELINE)
        self._counters = Counters()
        self._guard = threading.Lock()
        self._running: Loop | None = None
        self._last: Loop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    # --- pipelines ---------------------------------------------------------------------------------------------

    def attach(self, ring: Ring, plan: Plan, epoch: int) -> None:
        """Serve with this pipeline from now on; the head closes the ring when it is done with it.

        Raises:
            RuntimeError: another pipeline is running (`detach` it first), or the head is closed.

        """
        with self._guard:
            if self._closed or self._running is not None:
                raise RuntimeError("the head is closed" if self._closed else "another pipeline is running; detach it")
            loop = Loop(
                ring,
                plan,
                epoch,
                self.options.policy(plan),
                intake=self._intake,
                counters=self._counters,
                eos_ids=self._words.eos_ids,
                clock=self._clock,
            )
            self._running = self._last = loop
            self._intake.open(ring.wake, plan.slots, self.options.queue)
            self._thread = threading.Thread(
                target=self._supervise, args=(loop, ring), name=f"head-epoch-{epoch}", daemon=True
            )
            self._thread.start()

    def detach(self, reason: str = STOPPED) -> None:
        """End the running pipeline: its requests fail with `reason`, its ring is closed. Idempotent."""
        with self._guard:
            loop, thread = self._running, self._thread
            if loop is not None:
                self._intake.reason = reason
                loop.stop()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def close(self) -> None:
        """End every request with an error and accept no more. Idempotent."""
        self._closed = True
        self.detach()

    def _supervise(self, loop: Loop, ring: Ring) -> None:
        """The supervisor of the loop: whatever ends it, a bug included, no request is left waiting."""
        cause: Exception | None = None
        try:
            loop.run()
        except HyperlaneError as error:
            cause = error
        except Exception as error:
            log.exception("the head's loop failed")
            cause = error
        reason = self._intake.reason if cause is None else f"the pipeline was lost: {cause}; send the request again"
        with self._guard:
            late = self._intake.shut(reason)
            self._running = None
            ring.close()
        loop.give_up(reason, cause, late)
        if cause is not None and self._on_lost is not None:
            self._on_lost(cause)

    # --- requests ----------------------------------------------------------------------------------------------

    def submit(self, request: GenerationRequest) -> Stream:
        """Queue a request that `validation.check_request` accepted.

        Raises:
            Overloaded: the queue is full.
            PipelineLost: no pipeline is running.

        """
        number = next(self._ids)
        stream = Stream(lambda: self._intake.cancel(number))
        length, seed = len(request.prompt), request.sampling.seed
        sequence = Sequence(
            request,
            stream,
            Lane(number, length, length),
            seed=self._entropy() if seed is None else seed,
            limit=min(self.context, length + (request.max_tokens or self.context)),
            vocab=self.model.vocab,
            token_bytes=self._words.token_bytes,
            submitted_s=self._clock(),
        )
        self._intake.accept(sequence)
        return stream

    def warm_up(self, timeout_s: float = 60.0) -> None:
        """Send one token through every stage; the head is `ready` then.

        Raises:
            HyperlaneError: what became of it.

        """
        params = SamplingParams(temperature=0.0)
        stream = self.submit(GenerationRequest("warm-up", (0,), params, max_tokens=1, ignore_eos=True))
        try:
            event = stream.last(timeout_s)
        except TimeoutError as error:
            stream.cancel()
            raise PipelineLost(f"no token came through the stages within {timeout_s:g} s") from error
        if isinstance(event, Failed):
            raise event.error

    # --- what it knows -----------------------------------------------------------------------------------------

    @property
    def context(self) -> int:
        """Tokens that a slot of the last plan holds; the model's own before there was one."""
        return self._last.plan.context if self._last is not None else self.model.context

    def ready(self) -> bool:
        """Whether a real token went through every stage of the running plan."""
        loop = self._running
        return loop is not None and loop.proved

    def status(self) -> HeadStatus:
        """What the head knows of itself now.

        Raises:
            PipelineLost: there was no plan yet.

        """
        loop, counters = self._last, self._counters
        if loop is None:
            raise PipelineLost(NO_PIPELINE)
        active = loop.active
        return HeadStatus(
            model=self.model.name,
            ready=self.ready(),
            plan=loop.plan,
            epoch=loop.epoch,
            stages=loop.timings.stages(loop.plan),
            queued=max(0, self._intake.accepted - active),
            active=active,
            slots=loop.plan.slots,
            requests_admitted=counters.admitted,
            requests_ended=counters.ended,
            requests_refused=self._intake.refused,
            prompt_tokens=counters.prompt_tokens,
            completion_tokens=counters.completion_tokens,
            logits_refetched=counters.logits_refetched,
            ring_us=loop.timings.ring_us,
            uptime_s=self._clock() - self._started_s,
            hop_us=loop.timings.hop_us,
            sent_bytes_per_token=loop.timings.sent_bytes_per_token,
        )
