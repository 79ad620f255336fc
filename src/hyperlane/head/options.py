"""What a head is given: what it must know of a tokenizer, how it uses a pipeline, and what it counts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from hyperlane.core import PROMPT_CHUNK, Plan
from hyperlane.head.prefixes import Reuse
from hyperlane.head.scheduler import Policy
from hyperlane.wire.limits import TOKEN_ID_BYTES
from hyperlane.wire.packing import token_bytes

CPU = "CPUExecutionProvider"
"""The provider whose workers compute side by side on one machine, each on threads of its own."""


class Words(Protocol):
    """What the head must know of a tokenizer."""

    @property
    def eos_ids(self) -> Collection[int]:
        """Tokens that end an answer."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; none for control tokens."""
        ...


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """How a head uses its pipelines. None: as the plan's prediction has it; without one from its stages P, as said.

    `max_step_tokens`: tokens of one frame (the workers' limit as well). `prompt_chunk`: `PROMPT_CHUNK`; see
    `scheduler.Policy`.
    `queue`: requests that may wait for a slot. `frames_in_flight`: 2 P. `bytes_in_flight`: on all links together.
    `decode_groups`: P, stages on one card counted once; see `scheduler.Policy`. `recovery_timeout_s`: how long
    requests wait for the next pipeline when one was lost; 0: they fail at once. `prefix_cache`: what a prompt may go
    on from.
    """

    max_step_tokens: int = 128
    prompt_chunk: int | None = None
    queue: int = 64
    frames_in_flight: int | None = None
    bytes_in_flight: int = 64 << 20
    decode_groups: int | None = None
    min_group_rows: int = 2
    recovery_timeout_s: float = 0.0
    prefix_cache: Reuse = Reuse.ALL

    def policy(self, plan: Plan) -> Policy:
        """The scheduler's limits for a plan."""
        stages, predicted = len(plan.stages), plan.prediction
        groups = self.decode_groups or (predicted.groups if predicted else _devices(plan))
        return Policy(
            max_step_tokens=self.max_step_tokens,
            prompt_chunk=self.prompt_chunk or (predicted.chunk_tokens if predicted else PROMPT_CHUNK),
            max_frames=self.frames_in_flight or (predicted.frames if predicted else 2 * stages),
            frames_beside=max(stages, groups),
            max_bytes=self.bytes_in_flight,
            token_bytes=_largest_token(plan),
            logits_bytes=4 * plan.model.vocab,
            decode_groups=groups,
            min_group_rows=self.min_group_rows,
        )


def _devices(plan: Plan) -> int:
    """How many stages can compute at the same time: those on one card take turns."""
    workers = [stage.worker for stage in plan.stages]
    alone = [worker for worker in workers if worker.provider == CPU or not worker.memory_pool]
    shared = {(worker.provider, worker.memory_pool) for worker in workers if worker not in alone}
    return len(alone) + len(shared)


def _largest_token(plan: Plan) -> int:
    """Bytes of a token on the link that carries most."""
    senders = zip(plan.stages[:-1], plan.precisions[1:], strict=False)
    hidden = [token_bytes(plan.model.hidden, precision, stage.worker.element) for stage, precision in senders]
    return max(hidden, default=TOKEN_ID_BYTES)


@dataclass(slots=True)
class Counters:
    """What happened since the head's start, but to requests as such: `observe.requests` counts those."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    logits_refetched: int = 0
    losses: int = 0
    continued: int = 0
    cached_tokens: int = 0
