"""The head's one loop: receive → commit → schedule → send → publish. One `Loop` for each pipeline, one thread.

Owns what dies with a pipeline: its ring, its lanes, its frames in flight. Knows no engine, no HTTP and no text rule.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from collections.abc import Sequence as Many
from typing import NamedTuple

from hyperlane.core import Achieved, Failed, Finished, FinishReason, Kept, Plan
from hyperlane.errors import EngineFault, HyperlaneError, StepOverdue
from hyperlane.head.ahead import Ahead, look_ahead
from hyperlane.head.costs import FrameCosts
from hyperlane.head.deadline import LEAST_S, StepDeadline
from hyperlane.head.frames import Departure, step_frame
from hyperlane.head.lane import Lane
from hyperlane.head.pace import Pace
from hyperlane.head.prefixes import Place, Prefixes, Reuse, common
from hyperlane.head.requests import Requests
from hyperlane.head.sampler import Choice, Logits
from hyperlane.head.scheduler import Flight, Lanes, Policy, StepPlan, schedule
from hyperlane.head.sequence import Seat, Sequence
from hyperlane.head.timings import FrameTiming, Timings
from hyperlane.wire.candidates import Candidates, split
from hyperlane.wire.codec import encode, size_sent
from hyperlane.wire.frame import Copy, Frame, PackedRows
from hyperlane.wire.link import Ring

MOST_REHEARSED = 2
"""Rows that are rehearsed: with more the sampling takes longer than what the caches cost, and a frame would wait."""


class _News(NamedTuple):
    """A committed token that is not published yet; `reason`: the answer ends with it."""

    sequence: Sequence
    choice: Choice
    reason: FinishReason | None


class _Return(NamedTuple):
    """A frame that came back at `at_s`, the one before it at `before_s`; `alone`: no other was in flight.

    `streams` had slots, `committed` tokens came of it.
    """

    frame: Frame
    left: Departure
    at_s: float
    before_s: float
    alone: bool
    streams: int
    committed: int
    is_decode: bool


class Loop:
    """Serves a head's requests with one pipeline until that fails or `stop` is called.

    `run`, `left` and `publish` are called by one thread; the other methods and the attributes may be used from any.
    """

    def __init__(
        self,
        ring: Ring,
        plan: Plan,
        epoch: int,
        policy: Policy,
        *,
        requests: Requests,
        eos_ids: Collection[int],
        least_step_s: float = LEAST_S,
        reuse: Reuse = Reuse.ALL,
        kept: Kept | None = None,
    ) -> None:
        """`kept`: what stages hold of the pipeline before this one."""
        self.plan = plan
        self.epoch = epoch
        self.timings = Timings()
        self.pace = Pace()
        self.proved = False
        """A token came through every stage."""
        self._ring = ring
        self._policy = policy
        self._requests = requests
        self._counters = requests.counters
        self._clock = requests.clock
        self._eos_ids = eos_ids
        self._kept = kept
        self._lanes = Lanes(plan.slots)
        self._prefixes = Prefixes(policy.chunk, reuse)
        self._costs = FrameCosts()
        self._sequences: dict[int, Sequence] = {}
        self._departures: deque[Departure] = deque()
        self._news: list[_News] = []
        self._returned: list[_Return] = []
        self._stopping = False
        self._verdict: HyperlaneError | None = None
        self._deadline = StepDeadline(least_step_s)
        self._back_s = 0.0
        self._last: tuple[Flight, Frame, Departure] | None = None
        self._ahead: Ahead | None = None

    @property
    def active(self) -> int:
        """Requests that have a slot."""
        return len(self._lanes.running)

    def achieved(self) -> Achieved:
        """The speeds of late, of a prompt's first token for the length that the plan's prediction is about."""
        said = self.plan.prediction
        return self.pace.achieved(said.prompt_tokens if said is not None else 0)

    def holds(self, prompt: list[int]) -> int:
        """How many tokens of a prompt its slots hold, or will when what waits is computed: a hint, from any thread."""
        if not self._prefixes.is_used:
            return 0
        coming = (list(sequence.request.prompt) for sequence in list(self._sequences.values()))
        lengths = (common(other, prompt, min(len(other), len(prompt))) for other in coming)
        return max(self._prefixes.longest(prompt), *lengths, 0)

    def stop(self, verdict: HyperlaneError | None = None) -> None:
        """Make `run` return between two steps, or raise the verdict. The caller keeps the ring open until it has."""
        self._verdict, self._stopping = verdict, True
        self._ring.wake()

    def take_over(self, carried: Collection[Sequence]) -> None:
        """Before `run`: compute these again, and go on with them. The first ones have the first slots.

        Where stages kept what the last pipeline made, that is not computed again there.
        """
        for sequence in carried:
            seat, kept = sequence.seat, self._kept
            if seat is not None and kept is not None and seat.epoch == kept.epoch:
                sequence.lane.keep(seat.slot, seat.count, kept.first)
            self._queue(sequence)

    def run(self) -> None:
        """Serve. A token is committed, the next frames leave, and only then its text is made and told.

        Raises:
            HyperlaneError: the ring failed, or a stage did, or what `stop` was told.

        """
        while not self._stopping:
            frames = self._ring.poll(self._patience_s(), self._rehearse)
            for frame in frames:
                self._commit(frame)
            if not frames:
                self._check_deadline()
            self._take_in()
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead.holds(self._lanes):
                self._send(ahead.plan, ahead.rows)
            while (plan := schedule(self._lanes, self._policy, self._costs.room, self._costs.piece)) is not None:
                self._send(plan)
            self._learn()
            self.publish()
        if self._verdict is not None:
            raise self._verdict

    def _send(self, plan: StepPlan, rows: PackedRows | None = None) -> None:
        alone = not self._lanes.flights
        frame = step_frame(self._lanes.depart(plan), self._sequences, self.epoch, rows)
        at_s = self._clock()
        self._ring.send(frame)
        self._departures.append(Departure(at_s, frame.rows, size_sent(frame), alone))

    def left(self) -> list[Sequence]:
        """The requests that have not ended, for another pipeline or none: each holds all of its tokens.

        Those with a slot come first, the shortest first.
        """
        untold = [news.sequence for news in self._news if news.reason is not None]
        running = [self._sequences[lane] for lane in self._lanes.running]
        waiting = [self._sequences[lane.id] for lane in self._lanes.waiting]
        for sequence in running:
            sequence.seat = Seat(self.epoch, sequence.lane.slot, self._lanes.certain(sequence.lane))
        self._lanes = Lanes(self.plan.slots)
        return [*untold, *sorted(running, key=lambda sequence: len(sequence.tokens)), *waiting]

    def _patience_s(self) -> float | None:
        """Look at once when publishing has freed a slot that somebody waits for, else wait for a frame or a request."""
        if self._lanes.waiting and self._lanes.freed:
            return 0.0
        until_s = min(self._due_s() if self._departures else math.inf, self._requests.due_s)
        return max(0.0, until_s - self._clock()) if until_s < math.inf else None

    def _due_s(self) -> float:
        """When the oldest frame in flight must be back."""
        oldest = self._departures[0]
        return max(oldest.at_s, self._back_s) + self._deadline.of(oldest.tokens)

    def _check_deadline(self) -> None:
        if self._departures and self._clock() >= self._due_s():
            tokens = self._departures[0].tokens
            raise StepOverdue(
                f"a step of {tokens} tokens did not come back within {self._deadline.of(tokens):.2f} s: "
                "a worker hangs, or its network is cut"
            )

    # --- commit ------------------------------------------------------------------------------------------------

    def _commit(self, frame: Frame) -> None:
        """Take the tokens of a frame that came back. Rows of requests that ended meanwhile are dropped."""
        now_s = self._clock()
        flight = self._lanes.arrive(frame.step)
        left = self._departures.popleft()
        alone = left.alone and not self._lanes.flights
        streams, before = self.active, self._counters.completion_tokens
        self._last = flight, frame, left
        for share, answer in zip(flight.plan.shares, self._answers(frame, left), strict=True):
            sequence = self._sequences.get(share.lane)
            if answer and sequence is not None:
                self._take(sequence, answer[0], now_s)
        committed = self._counters.completion_tokens - before
        self._returned.append(
            _Return(frame, left, now_s, self._back_s, alone, streams, committed, is_decode=flight.plan.is_decode)
        )
        self._back_s = now_s

    def _learn(self) -> None:
        """What the frames that came back say of times: noted while the next ones are under way."""
        for back in self._returned:
            left, tokens = back.left, back.left.tokens
            self._deadline.note(tokens, back.at_s - max(left.at_s, back.before_s))
            ring_us = (back.at_s - left.at_s) * 1e6
            timings = tuple(back.frame.timings)
            self.timings.note(FrameTiming(ring_us, tokens, left.sent_bytes, back.alone, timings, left.at_s))
            alone_rows = sum(row.count == 1 for row in left.rows)
            if not any(row.skip_from or row.one_by_one for row in left.rows):
                self._costs.note(alone_rows, tokens - alone_rows, sum(timing.computed_us for timing in timings))
            self.pace.note(back.at_s, back.committed, streams=back.streams, is_decode=back.is_decode)
        self._returned.clear()

    def _rehearse(self) -> None:
        """What the next frame will take, done with the last one to no effect: see `wire/anticipation.py`."""
        if self._last is None:
            return
        flight, frame, left = self._last
        if flight.plan.whole_logits or len(left.rows) > MOST_REHEARSED:
            return
        for share, row, answer in zip(flight.plan.shares, left.rows, self._answers(frame, left), strict=True):
            sequence = self._sequences.get(share.lane)
            if sequence is None:
                return
            if answer and row.extra_ids == sequence.ask.extra_ids:  # its token may have added one
                sequence.pick(answer[0])
        if self._ahead is None:
            self._ahead = look_ahead(self._lanes, self._policy, self._sequences)
        if self._ahead is not None:
            self._ahead.holds(self._lanes)
        encode(step_frame(flight, self._sequences, self.epoch))

    def _answers(self, frame: Frame, left: Departure) -> list[list[Candidates | Logits]]:
        payload = frame.payload[0] if len(frame.payload) == 1 else b"".join(frame.payload)
        return split(left.rows, payload, self.plan.model.vocab)

    def _take(self, sequence: Sequence, answer: Candidates | Logits, now_s: float) -> None:
        """One answer becomes a token, a question for whole logits, or the request's fault."""
        try:
            choice = sequence.pick(answer)
        except EngineFault as error:
            self._prefixes.forget(sequence.lane.slot)
            self._end(sequence, Failed(error))
            return
        self.proved = True
        if choice is None:
            sequence.lane.ask_again()
            self._counters.logits_refetched += 1
            return
        sequence.append(choice.token, now_s)
        if sequence.generated == 1 and self.active == 1 and not sequence.cached:
            self.pace.first(now_s - sequence.admitted_s, len(sequence.request.prompt))
        self._counters.completion_tokens += 1
        reason = self._ending(sequence, choice.token)
        if reason is None:
            self._lanes.grow(sequence.lane, whole=sequence.ask.whole_logits)
        else:
            self._release(sequence)
        self._news.append(_News(sequence, choice, reason))

    def _ending(self, sequence: Sequence, token: int) -> FinishReason | None:
        if token in self._eos_ids and not sequence.request.ignore_eos:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(sequence.tokens) >= sequence.limit else None

    def _take_in(self) -> None:
        """New requests queue up, those cancelled or out of time end, and free slots go to those that wait longest."""
        arrived, cancelled = self._requests.take_in()
        if not (arrived or cancelled or self._lanes.waiting) and self._requests.due_s > self._clock():
            return
        for sequence in arrived:
            self._queue(sequence)
        for lane_id in [*cancelled, *(sequence.lane.id for sequence in arrived if sequence.abandoned)]:
            if (gone := self._sequences.get(lane_id)) is not None:
                self._end(gone, gone.finished(FinishReason.CANCELLED))
        for lane_id in self._requests.overdue():
            if (over := self._sequences.get(lane_id)) is not None:
                self._end(over, over.expired())
        for lane in self._lanes.admit(self._place):
            self._sequences[lane.id].admit(self._clock())

    def _queue(self, sequence: Sequence) -> None:
        self._sequences[sequence.lane.id] = sequence
        waiting = self._lanes.waiting
        if sequence.is_carried:  # its reader has seen its beginning: it goes before those that have not begun
            waiting.insert(sum(self._sequences[lane.id].is_carried for lane in waiting), sequence.lane)
        else:
            waiting.append(sequence.lane)

    def _place(self, lane: Lane, free: Many[int]) -> int | None:
        """Choose a lane's slot, and copy to it what another one holds of its first tokens."""
        sequence = self._sequences[lane.id]
        # What is replayed must come to the same bits again, and of its answer it has to make all entries itself.
        replayed = sequence.replays > 0 or sequence.generated > 0
        exact = replayed or sequence.request.sampling.seed is not None
        prompt = sequence.tokens[: lane.prompt]
        place: Place | None
        if lane.seat >= 0:
            # Others' entries may be copied to its slot, but it waits for none.
            shared = self._prefixes.place(prompt, (lane.seat,), exact=True) if not lane.sent else None
            place = shared or Place(lane.seat, lane.sent)
        else:
            seats = {one.seat for one in self._lanes.waiting}
            free = [slot for slot in free if slot not in seats]
            place = self._prefixes.place(prompt, free, exact=exact) if free else None
        if place is None:
            return None
        for move in place.moves:
            self._ring.send(Copy(self.epoch, self._lanes.steps, move.source, move.destination, move.count))
        lane.slot, lane.sent, lane.exact = place.slot, place.count, place.exact
        self._prefixes.hold(lane, sequence.tokens)
        if not replayed:
            self._counters.continued += place.count > 0
            self._counters.cached_tokens += place.count
            sequence.cached = place.count
        return place.slot

    # --- publish -----------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Text, events and ends, while the stages compute. The end-of-sequence token itself is not told."""
        for sequence, choice, reason in self._news:
            if sequence.ended:
                continue
            if reason is not FinishReason.STOP and sequence.tell(choice):
                self._end(sequence, sequence.finished(FinishReason.STOP))
            elif reason is not None:
                self._end(sequence, sequence.finished(reason))
        self._news.clear()

    def _release(self, sequence: Sequence) -> None:
        """The request's slot, or its place in the queue, is free."""
        if self._sequences.pop(sequence.lane.id, None) is not None:
            self._lanes.end(sequence.lane)

    def _end(self, sequence: Sequence, event: Finished | Failed) -> None:
        """The request's last event, exactly once."""
        self._release(sequence)
        self._requests.end(sequence, event)
