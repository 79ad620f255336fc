"""What a frame says of its rows, and what stages say of a frame."""

from __future__ import annotations

from dataclasses import dataclass

from hyperlane.core.names import CANDIDATES_K


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of a step frame: `count` tokens at positions `start` … of KV slot `slot`.

    A start below what the slot holds overwrites the KV entries there: that is rollback, and it is exact.
    `want`: ascending offsets (0 ≤ offset < count) of the tokens whose next-token candidates are asked for.
    `top_k`: how many candidates for each. `extra_ids`: tokens whose logits are asked for besides.
    `temperature`: the last stage also returns the log-sum-exp of logits / temperature (1.0 for greedy).
    `whole_logits`: the answer to the wanted positions is the whole logit vector, in a LOGITS frame's payload.
    `skip_from`: stages from this index on hold the KV entries of all its positions and leave the row out; 0: none do.
    Nothing is wanted of such a row.
    `one_by_one`: its several tokens are computed as so many rows of one token would be, one after the other: what
    decode steps made is made again, to the same bits. An engine may read its weights once for all of them.
    """

    slot: int
    start: int
    count: int
    want: tuple[int, ...] = ()
    top_k: int = CANDIDATES_K
    extra_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    whole_logits: bool = False
    skip_from: int = 0
    one_by_one: bool = False

    def is_skipped(self, stage: int) -> bool:
        """Whether the stage of this index leaves it out; its hidden states do not come there either."""
        return 0 < self.skip_from <= stage


@dataclass(frozen=True, slots=True)
class Kept:
    """KV entries that outlive a pipeline.

    `epoch`: the counter of the one that made them. `first`: from this index on all stages of the next one have them,
    each in the slots where they were.
    """

    epoch: int
    first: int


@dataclass(frozen=True, slots=True)
class StageTiming:
    """What one stage says of one frame, in microseconds of its own clock; the head needs no common clock.

    `waited_us`: from being ready to receive until the frame's header was there. `computed_us`: engine time.
    `overhead_us`: everything else between the header's arrival and the start of the send, but of what came while the
    frame before it was computed only what lies after that.
    `previous_send_us`: how long sending the frame before this one held the stage up. `sent_bytes`: of the frame being
    passed on.
    """

    stage: int
    waited_us: int
    computed_us: int
    overhead_us: int
    previous_send_us: int
    sent_bytes: int
