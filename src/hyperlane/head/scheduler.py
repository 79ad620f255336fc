"""Which rows the next step frame holds. Pure: lanes and frames in flight as plain numbers in, a plan out.

Knows no token, no text, no clock and no socket. The rules are written at `schedule`.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from hyperlane.core import PROMPT_CHUNK
from hyperlane.errors import ProtocolError
from hyperlane.head.lane import Lane


@dataclass(frozen=True, slots=True)
class Policy:
    """How much may be under way. The values that measurements will choose are here and nowhere else.

    `max_step_tokens`: tokens of one frame. `prompt_chunk`: prompts are cut at its multiples, and beside decode rows in
    smaller parts, but never into single tokens: so a prompt is computed to the same bits alone and beside others, and
    in a plan with another chunk.
    `replayed_tokens`: tokens of answers that a frame computes again, as long as no row of them ends beyond.
    `max_frames`, `max_bytes`: in flight together; a frame is counted with `token_bytes` a token and `logits_bytes` for
    each row that asks for whole logits. `frames_beside`: in flight while prompts are taken in beside streams, one for
    each stage, so that no row waits behind another frame. `decode_groups`: frames with decode rows in flight, so that
    several stages work at once; fewer when a group would have less than `min_group_rows` rows, as a batch on a
    memory-bound device costs hardly more than one row.
    """

    max_step_tokens: int = 128
    prompt_chunk: int = PROMPT_CHUNK
    replayed_tokens: int = 16
    max_frames: int = 2
    frames_beside: int = 2
    max_bytes: int = 64 << 20
    token_bytes: int = 4
    logits_bytes: int = 4
    decode_groups: int = 1
    min_group_rows: int = 2

    @property
    def chunk(self) -> int:
        """Tokens of a prompt that go together; a quarter of every frame is left to decode rows."""
        return min(self.prompt_chunk, max(1, self.max_step_tokens * 3 // 4))

    @property
    def longest_piece(self) -> int:
        """A chunk, and the token that would be left alone beside it."""
        return self.chunk + (self.chunk > 1)

    def next_count(self, lane: Lane) -> int:
        """How many of a lane's pending tokens its next row takes: of a prompt up to the next multiple of the chunk.

        Or one more, so that none is left alone: one token by itself is other arithmetic than beside another. Of an
        answer that is replayed all but the last, which is a decode row; no row is half kept.
        """
        if lane.is_replayed:
            known = lane.kept if lane.sent < lane.kept else lane.length - 1
            return min(known - lane.sent, self.replayed_tokens, self.max_step_tokens)
        if lane.sent >= lane.prompt:
            return 1
        return self._piece(lane.prompt - lane.sent, self.chunk - lane.sent % self.chunk)

    def _piece(self, left: int, ahead: int) -> int:
        """Of so many tokens; `ahead`: up to the chunk's next multiple."""
        if self.chunk == 1:
            return 1
        if left <= max(2, ahead + 1):
            return left
        if ahead > 1:
            return ahead
        return min(left, self.chunk + (left - self.chunk != 2))


Room = Callable[[int, int, float], int]
"""Tokens of prompts in a frame beside streams: by its decode rows, a usual frame's, and how much more it may take."""

Piece = Callable[[int, int, int, float], int]
"""Tokens of prompts in a frame of their own beside streams, or 0 where they go with decode rows.

By a usual frame's decode rows, groups of such rows, stages, and how much longer a round of the groups may take.
"""


@dataclass(frozen=True, slots=True)
class Share:
    """What one row carries: tokens `start` … of a lane, and whether the token that follows them is asked for.

    `skip_from`, `one_by_one`: as a row has them.
    """

    lane: int
    slot: int
    start: int
    count: int
    wanted: bool
    skip_from: int = 0
    one_by_one: bool = False


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The rows of one frame. No lane has two. `whole_logits`: all rows want them, else none does.

    `decode_rows`: rows of one token that ask for the next one.
    """

    shares: tuple[Share, ...]
    whole_logits: bool
    decode_rows: int
    bytes: int

    @property
    def is_decode(self) -> bool:
        """Whether it holds nothing but decode rows, those that are asked once more for whole logits included."""
        if self.whole_logits:
            return all(share.count == 1 and share.start for share in self.shares)
        return self.decode_rows == len(self.shares)


@dataclass(frozen=True, slots=True)
class Flight:
    """A frame in the ring. Frames come back in the order in which they left."""

    step: int
    plan: StepPlan


@dataclass(slots=True)
class Lanes:
    """The scheduler's state: who runs in which slot, who waits, what is in flight. Its methods are the transitions.

    A slot is free as soon as its lane ended, also while frames of that lane are in flight: links are FIFO, so what
    these still write is there, or overwritten, before a later frame reads it. Their answers find no lane any more.
    """

    slots: int
    running: dict[int, Lane] = field(default_factory=dict)
    waiting: deque[Lane] = field(default_factory=deque)
    flights: deque[Flight] = field(default_factory=deque)
    steps: int = 0
    free: list[int] = field(init=False)
    bytes: int = field(default=0, init=False)
    freed: bool = field(default=False, init=False)
    """A slot became free since lanes were last admitted."""
    last_was_whole: bool = field(default=False, init=False)
    since_prompt: int = field(default=0, init=False)
    """Frames that left since the last one with a prompt's piece."""

    def __post_init__(self) -> None:
        self.free = list(range(self.slots))

    def admit(self, place: Callable[[Lane, Sequence[int]], int | None] = lambda _, free: free[0]) -> list[Lane]:
        """Give free slots to those that wait longest. Returns the lanes that have one now.

        `place`: chooses one of the free slots, given in order, or None: the lane goes on waiting, the next is asked.
        """
        admitted = []
        self.freed = False
        for lane in list(self.waiting) if self.free else ():
            slot = place(lane, self.free)
            if slot is None:
                continue
            lane.slot = slot
            self.free.remove(slot)
            self.waiting.remove(lane)
            self.running[lane.id] = lane
            admitted.append(lane)
            if not self.free:
                break
        return admitted

    def depart(self, plan: StepPlan) -> Flight:
        """The plan's frame leaves now."""
        flight = Flight(self.steps, plan)
        for share in plan.shares:
            lane = self.running[share.lane]
            lane.moved(share.start + share.count)
            lane.made(share.start, share.count, one_by_one=share.one_by_one)
            lane.served = self.steps
        self.steps += 1
        self.flights.append(flight)
        self.bytes += plan.bytes
        self.last_was_whole = plan.whole_logits
        has_prompt = any(share.start < self.running[share.lane].prompt for share in plan.shares)
        self.since_prompt = 0 if has_prompt else self.since_prompt + 1
        return flight

    def arrive(self, step: int) -> Flight:
        """The oldest frame came back.

        Raises:
            ProtocolError: it is another frame.

        """
        if not self.flights or self.flights[0].step != step:
            expected = self.flights[0].step if self.flights else "none"
            raise ProtocolError(f"step {step} came back, expected was {expected}")
        flight = self.flights.popleft()
        self.bytes -= flight.plan.bytes
        for share in flight.plan.shares:
            if (lane := self.running.get(share.lane)) is not None:
                lane.answered = True
        return flight

    def certain(self, lane: Lane) -> int:
        """Positions of a running lane, from the first on, whose entries are surely in every stage."""
        starts = [share.start for flight in self.flights for share in flight.plan.shares if share.lane == lane.id]
        return min(starts, default=lane.sent) if lane.answered else 0

    def grow(self, lane: Lane, *, whole: bool) -> None:
        """The lane has one token more. `whole`: the one after it takes the whole logits."""
        lane.length += 1
        lane.whole = whole

    def end(self, lane: Lane) -> None:
        """The lane is served, or given up."""
        if self.running.pop(lane.id, None) is None:
            self.waiting.remove(lane)
        else:
            bisect.insort(self.free, lane.slot)
            self.freed = True


def schedule(
    lanes: Lanes, policy: Policy, room: Room = lambda *_: 1 << 30, piece: Piece = lambda *_: 0
) -> StepPlan | None:
    """The next frame, or None when nothing can be sent before a frame comes back or a lane is admitted.

    - Decode rows of all lanes whose last token is known go together. They are split over `decode_groups` frames in
      flight when every group keeps `min_group_rows`, each group a range of neighbouring slots; the group of the lane
      that was served longest ago goes first.
    - Answers that are replayed wait for no answer: those with the least to compute again have rows in every frame,
      until these are `replayed_tokens` together.
    - What is left of the token budget goes to chunks of prompts, whole ones; beside streams that decode only as many
      of their tokens as there is `room` for, two at least: these may double the time between two tokens, or more where
      more prompts than streams are there, so that all have the same share. Every other frame starts with the
      oldest prompt, so that none starves, the others with the one that has least left, so that a short one does not
      wait for a long one. Chunks of one prompt follow each other without waiting. Decode rows leave room for one
      chunk. Where a `piece` has a frame of its own, one leaves for each time that every group of decode rows left.
    - Rows that want whole logits make a frame of their own, at most every other one while there are other rows.
    """
    if len(lanes.flights) >= policy.max_frames:
        return None
    ready = [lane for lane in lanes.running.values() if lane.length > lane.sent]
    whole = [lane for lane in ready if lane.whole and lane.wants(lane.sent + policy.next_count(lane))]
    if not whole:
        return _plan_rows(lanes, policy, ready, room, piece)
    others = [lane for lane in ready if lane not in whole]
    if lanes.last_was_whole:
        return _plan_rows(lanes, policy, others, room, piece) or _fill(
            lanes, policy, (), _by_wait(whole), whole_logits=True
        )
    return _fill(lanes, policy, (), _by_wait(whole), whole_logits=True) or _plan_rows(
        lanes, policy, others, room, piece
    )


def _plan_rows(lanes: Lanes, policy: Policy, ready: Sequence[Lane], room: Room, piece: Piece) -> StepPlan | None:
    streams = len(_streams(lanes))
    groups = max(1, min(policy.decode_groups, streams // policy.min_group_rows))
    decodes = _decodes(lanes, ready, policy, groups)
    prompts = _in_turn([lane for lane in ready if lane.sent < lane.prompt], lanes.steps)
    if not (prompts and streams):
        return _fill(lanes, policy, decodes, prompts, whole_logits=False)
    usual, share = -(-streams // groups), max(1.0, len(prompts) / streams)
    if tokens := piece(usual, groups, policy.frames_beside, share):
        return _apart(lanes, policy, decodes, prompts, groups, tokens)
    if len(lanes.flights) >= policy.frames_beside:
        return None
    tokens = room(len(decodes), usual, share)
    return _fill(lanes, policy, decodes, prompts, whole_logits=False, prompt_tokens=tokens)


def _apart(  # noqa: PLR0917
    lanes: Lanes,
    policy: Policy,
    decodes: Sequence[tuple[Lane, int]],
    prompts: Sequence[Lane],
    groups: int,
    tokens: int,
) -> StepPlan | None:
    """Rows first, and a prompt's piece once all groups had their turn; answers that are replayed do not hold it up."""
    rows = _fill(lanes, policy, decodes, (), whole_logits=False)
    is_turn = lanes.since_prompt >= groups or not any(flight.plan.decode_rows for flight in lanes.flights)
    if (rows is not None and lanes.since_prompt < 2 * groups) or not is_turn:
        return rows
    return _fill(lanes, policy, (), prompts, whole_logits=False, prompt_tokens=tokens) or rows


def _streams(lanes: Lanes) -> list[Lane]:
    return [lane for lane in lanes.running.values() if lane.sent >= lane.prompt and not lane.is_replayed]


def _decodes(lanes: Lanes, ready: Sequence[Lane], policy: Policy, groups: int) -> list[tuple[Lane, int]]:
    """Rows of answers that may leave now, with their tokens, by slot: a range of slots is one run of an engine."""
    one_by_one = [lane for lane in ready if lane.sent >= lane.prompt]
    has_prompts = len(one_by_one) < len(ready)
    budget = policy.max_step_tokens - (policy.longest_piece if has_prompts else 0)
    chosen: list[tuple[Lane, int]] = []
    if sum(flight.plan.decode_rows > 0 for flight in lanes.flights) < groups:
        waiting = [lane for lane in one_by_one if not lane.is_replayed]
        chosen = [(lane, 1) for lane in _by_wait(_group(lanes, waiting, groups))[:budget]]
    replayed = [lane for lane in one_by_one if lane.is_replayed]
    chosen += _replays(replayed, policy, budget - len(chosen))
    return sorted(chosen, key=lambda one: one[0].slot)


def _replays(replayed: Sequence[Lane], policy: Policy, budget: int) -> Iterator[tuple[Lane, int]]:
    tokens = 0
    for lane in sorted(replayed, key=lambda lane: lane.length - lane.sent):
        count = min(policy.next_count(lane), budget - tokens)
        if count < 1 or tokens >= policy.replayed_tokens:
            return
        tokens += count
        yield lane, count


def _group(lanes: Lanes, waiting: list[Lane], groups: int) -> list[Lane]:
    """Of those that wait, the group of the one that was served longest ago; a group's slots are neighbours."""
    if groups == 1:
        return waiting
    streams = sorted(_streams(lanes), key=lambda lane: lane.slot)
    size = -(-len(streams) // groups)
    group = {lane.id: index // size for index, lane in enumerate(streams)}
    first = min(waiting, key=lambda lane: lane.served, default=None)
    return [lane for lane in waiting if first is not None and group[lane.id] == group[first.id]]


def _by_wait(lanes: list[Lane]) -> list[Lane]:
    return sorted(lanes, key=lambda lane: lane.served)


def _in_turn(prompts: list[Lane], step: int) -> list[Lane]:
    if step % 2:
        return sorted(prompts, key=lambda lane: lane.length - lane.sent)
    return prompts


def _fill(
    lanes: Lanes,
    policy: Policy,
    decodes: Sequence[tuple[Lane, int]],
    prompts: Sequence[Lane],
    *,
    whole_logits: bool,
    prompt_tokens: int = 1 << 30,
) -> StepPlan | None:
    """Rows in the given order until the budget is used; None when there are none, or not the bytes for them."""
    left = policy.max_step_tokens
    shares = [_share(lane, count) for lane, count in decodes]
    decode_rows = sum(share.wanted for share in shares)
    left -= sum(share.count for share in shares)
    for lane in prompts:
        count = _part(policy.next_count(lane), prompt_tokens)
        if not 0 < count <= left:
            continue
        shares.append(_share(lane, count))
        left -= count
        prompt_tokens -= count
    if not shares:
        return None
    size = (policy.max_step_tokens - left) * policy.token_bytes
    size += policy.logits_bytes * len(shares) if whole_logits else 0
    if lanes.flights and lanes.bytes + size > policy.max_bytes:
        return None
    return StepPlan(tuple(shares), whole_logits, decode_rows, size)


def _share(lane: Lane, count: int) -> Share:
    end = lane.sent + count
    singly = count > 1 and lane.sent >= lane.prompt
    return Share(lane.id, lane.slot, lane.sent, count, lane.wants(end), lane.skipped_from(end), singly)


def _part(count: int, room: int) -> int:
    """How much of a chunk goes where there is so much room; no part and no rest of one is a single token."""
    if count <= room or room < 2:
        return count if count <= room else 0
    if count - room > 1:
        return room
    return room - 1 if room > 2 else count
