"""One request's whole life at the head: its tokens, its random state, its text, its times and its one last event.

Knows no frame and no other request. It holds every token, so that a new pipeline could compute it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hyperlane.core import (
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    RequestTimings,
    TokenChoice,
    TokenLogprob,
    Usage,
)
from hyperlane.errors import DeadlineExceeded
from hyperlane.head.lane import Lane
from hyperlane.head.penalties import History
from hyperlane.head.sampler import Choice, Logits, ask, is_greedy, pick, pick_whole, uniform
from hyperlane.head.streams import Stream
from hyperlane.head.text import TextAssembler
from hyperlane.wire.candidates import Candidates


@dataclass(frozen=True, slots=True)
class Seat:
    """Where the pipeline of an epoch's counter had it: the slot, and how many positions all stages had entries of."""

    epoch: int
    slot: int
    count: int


class Sequence:
    """State of one accepted request. All methods but `stream`'s are called by the head's thread.

    `seed`: of all its draws. `limit`: tokens at which it ends, prompt included. Times are seconds of the head's clock.
    `is_probe`: it asks about one pipeline, and ends with it.
    """

    __slots__ = (
        "_assembler",
        "_history",
        "_home",
        "_is_greedy",
        "_last_s",
        "_lost_s",
        "_token_bytes",
        "_vocab",
        "abandoned",
        "admitted_s",
        "ask",
        "cached",
        "counted",
        "due_s",
        "ended",
        "first_s",
        "is_probe",
        "lane",
        "limit",
        "paused_s",
        "replays",
        "request",
        "seat",
        "seed",
        "stream",
        "submitted_s",
        "tokens",
    )

    def __init__(
        self,
        request: GenerationRequest,
        lane: Lane,
        *,
        seed: int,
        limit: int,
        vocab: int,
        token_bytes: Callable[[int], bytes],
        submitted_s: float,
        is_probe: bool = False,
    ) -> None:
        self.request = request
        self.stream = Stream(self.abandon)
        self.lane = lane
        self.seed = seed
        self.limit = limit
        self.tokens = list(request.prompt)
        self.cached = 0
        """Tokens of the prompt that were not computed, because a slot held them."""
        self.ended = False
        self.abandoned = False
        """Nobody reads it any more."""
        self.counted = False
        """Its prompt is among the counted ones."""
        self.is_probe = is_probe
        self._home: Callable[[int], None] = lambda _: None
        self._vocab = vocab
        self._token_bytes = token_bytes
        self._assembler = TextAssembler(token_bytes, request.stop)
        self._history = History(request.sampling, request.prompt)
        self._is_greedy = is_greedy(request.sampling)
        self.ask = ask(request.sampling, self._history, vocab)
        lane.whole = self.ask.whole_logits
        self.submitted_s = submitted_s
        self.due_s = math.inf if request.timeout_s is None else submitted_s + request.timeout_s
        """When its time is over."""
        self.admitted_s = self.first_s = self._last_s = submitted_s
        self._lost_s: float | None = None
        self.paused_s = 0.0
        """Seconds between the loss of a pipeline and the next token, of all losses together."""
        self.replays = 0
        """How often it was carried to another pipeline since its last token."""

        self.seat: Seat | None = None

    def admit(self, now_s: float) -> None:
        """It has a slot; the first time counts."""
        if self.admitted_s == self.submitted_s:
            self.admitted_s = now_s

    # --- where it is -------------------------------------------------------------------------------------------

    def settle(self, tell: Callable[[int], None]) -> None:
        """Whose it is from now on: who is told its lane when its reader goes away."""
        self._home = tell

    def abandon(self) -> None:
        """Its reader went away. From any thread, and at any moment of a move: whoever takes it in finds it so."""
        self.abandoned = True
        self._home(self.lane.id)

    @property
    def is_carried(self) -> bool:
        """Whether a pipeline has begun it and was lost."""
        return self._lost_s is not None and self.lane.slot < 0 and (self.replays > 0 or self.generated > 0)

    def carry(self, now_s: float) -> None:
        """Its pipeline is gone. All of its tokens are here, so that the next one can compute it again."""
        if self.lane.slot >= 0:
            self.replays += 1
        if self._lost_s is None:
            self._lost_s = now_s
        self.lane.restart()

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.prompt)

    # --- commit ------------------------------------------------------------------------------------------------

    def pick(self, answer: Candidates | Logits) -> Choice | None:
        """The next token by a stage's answer, or None when it takes the whole logits.

        Raises:
            EngineFault: a value is not finite.

        """
        params = self.request.sampling
        draw = 0.0 if self._is_greedy else uniform(self.seed, len(self.tokens))
        if isinstance(answer, Candidates):
            return pick(answer, self.ask.extra_ids, params, self._history, draw=draw, vocab=self._vocab)
        return pick_whole(answer, params, self._history, draw)

    def append(self, token: int, now_s: float) -> None:
        """The token is part of the answer; the next row asks by it."""
        if not self.generated:
            self.first_s = now_s
        self._last_s = now_s
        if self._lost_s is not None:
            self.paused_s += now_s - self._lost_s
            self._lost_s, self.replays = None, 0
        self.tokens.append(token)
        history, touched = self._history, self._history.touched
        history.add(token)
        if history.touched is not touched:
            self.ask = ask(self.request.sampling, history, self._vocab)

    # --- publish -----------------------------------------------------------------------------------------------

    def tell(self, choice: Choice) -> bool:
        """Publish what a token makes certain. Returns whether a stop string is complete."""
        delta = self._assembler.push(choice.token, self._described(choice))
        if delta is not None:
            self.stream.publish(delta)
        return self._assembler.stopped

    def finished(self, reason: FinishReason) -> Finished:
        """The last event of a request that was served."""
        prompt = len(self.request.prompt)
        usage = Usage(prompt, self.generated, min(self.cached, prompt), self.paused_s)
        times = RequestTimings(
            queued_s=self.admitted_s - self.submitted_s,
            ttft_s=self.first_s - self.submitted_s,
            decode_s=self._last_s - self.first_s,
        )
        return Finished(reason, usage, times)

    def expired(self) -> Failed:
        """The last event of a request whose time is over."""
        made = f"{self.generated} tokens were made" if self.generated else "nothing was made of its answer"
        return Failed(
            DeadlineExceeded(
                f"the {self.request.timeout_s:g} s that this request may take are over, and {made}; ask for fewer "
                "tokens, or give it more time"
            )
        )

    def end(self, event: Finished | Failed) -> None:
        """Publish the last events, once: text that was held back, unless a stop string claimed it, then the end."""
        self.ended = True
        if isinstance(event, Finished) and not self._assembler.stopped:
            rest = self._assembler.finish()
            if rest is not None:
                self.stream.publish(rest)
        self.stream.publish(event)

    def _described(self, choice: Choice) -> TokenChoice | None:
        if choice.logprob is None:
            return None
        chosen = TokenLogprob(choice.token, self._token_bytes(choice.token), choice.logprob)
        top = tuple(TokenLogprob(token, self._token_bytes(token), value) for token, value in choice.top)
        return TokenChoice(chosen, top)
