"""What a head knows of itself, and `TextGenerator`: all that the edges ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hyperlane.core.counts import Endings, Refusals
from hyperlane.core.model import ModelFacts
from hyperlane.core.names import Address
from hyperlane.core.plans import Plan, StagePlan
from hyperlane.core.requests import ChatMessage, EventStream, GenerationRequest


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One stage of the running plan as the head sees it. Times are medians over the last steps, microseconds."""

    plan: StagePlan
    computed_us: float
    waited_us: float
    overhead_us: float
    sent_bytes_per_token: float


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A worker that the head knows of, in its plan or not. `state`: joining, ready, suspect or gone.

    `found`: the ways in which it was found. `rtt_us` 0: not measured. `reason`: why it cannot be used; empty when it
    can. Memory in bytes, as it last said; 0 when it never answered.
    """

    name: str
    node: str
    address: Address | None
    state: str
    found: tuple[str, ...]
    in_plan: bool = False
    device: str = ""
    version: str = ""
    memory_total: int = 0
    memory_free: int = 0
    rtt_us: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """A path between two nodes as it was measured last, whether the running plan has a link on it or not.

    `source`, `target`: names of workers, or `head`. `address`: the data port that is dialled for it, by the head where
    it is one of the two. `rtt_us`: there and back for a small frame; `bytes_per_s`: from source to target.
    `same_machine`: both nodes are on one.
    """

    source: str
    target: str
    address: Address
    rtt_us: float
    bytes_per_s: float
    in_plan: bool = False
    same_machine: bool = False


@dataclass(frozen=True, slots=True)
class SpareStatus:
    """The worker that is kept out of all plans with their stages loaded.

    `state`: ready (it holds all that its memory allows), loading, failed, or none: there is no spare now. `layers`: the
    ranges of the stages that it holds; `stages`: how many there are in the plans. `reason`: why it holds less, or none.
    """

    state: str
    name: str = ""
    address: Address | None = None
    layers: tuple[str, ...] = ()
    stages: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Achieved:
    """What the running plan did of late, to be held against its prediction; 0: nothing of the kind was seen.

    `token_s`: seconds per token of a stream that was alone. `many_rate`: tokens per second of `streams` streams that
    decoded together, the most that were seen. `ttft_s`: of the last request that was alone, from getting a slot to its
    first token; its prompt had `prompt_tokens`.
    """

    token_s: float = 0.0
    many_rate: float = 0.0
    streams: int = 0
    ttft_s: float = 0.0
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class HeadStatus:
    """What the head knows of itself now. Counters count since the start. `ready`: see `TextGenerator.ready`.

    `sent_bytes_per_token`: on the link to stage 0, as `StageStatus` has it for the others; 0 before the first token.
    `nodes`: workers that were found. `troubles`: what a person should see to, as two machines with one identity.
    `requests_continued`: whose first tokens a slot held already; `cached_tokens`: prompt tokens not computed for that.
    """

    model: str
    ready: bool
    plan: Plan
    epoch: int
    stages: tuple[StageStatus, ...]
    queued: int
    active: int
    slots: int
    requests_admitted: int
    requests_ended: int
    requests_refused: int
    prompt_tokens: int
    completion_tokens: int
    logits_refetched: int
    ring_us: float
    uptime_s: float
    hop_us: float = 0.0
    hop_p99_us: float = 0.0
    sent_bytes_per_token: float = 0.0
    nodes: tuple[NodeStatus, ...] = ()
    troubles: tuple[str, ...] = ()
    losses: int = 0
    """How many pipelines were lost since the start."""
    achieved: Achieved = field(default_factory=Achieved)
    links: tuple[LinkStatus, ...] = ()
    """What was measured of the paths between nodes; empty when nothing was."""
    requests_continued: int = 0
    cached_tokens: int = 0
    endings: Endings = field(default_factory=Endings)
    """How the requests ended that `requests_ended` counts."""
    refusals: Refusals = field(default_factory=Refusals)
    """Why those were refused that `requests_refused` counts."""
    spare: SpareStatus | None = None
    """None: none is wanted."""
    replicas: tuple[HeadStatus, ...] = ()
    """Each pipeline by itself, where there are several: then counts and slots are of all together, and plan, epoch,
    stages and times of the first one that is ready. A request that moved is admitted with one and ends with another."""

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan of each pipeline."""
        return tuple(replica.plan for replica in self.replicas) or (self.plan,)


class TextGenerator(Protocol):
    """What the HTTP edge, the Python API and the command line ask of a head."""

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def context(self) -> int:
        """Tokens that a slot holds: prompt and answer together."""
        ...

    @property
    def has_chat_template(self) -> bool: ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text with the model's BOS rule; special tokens inside the text are not parsed."""
        ...

    def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Token ids of a conversation, ready for the assistant's turn.

        Special tokens inside message contents are not parsed.

        Raises:
            InvalidRequest: the model has no chat template, or the template refuses the messages.

        """
        ...

    def token_text(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        ...

    def submit(self, request: GenerationRequest) -> EventStream:
        """Queue a request.

        Raises:
            ContextLengthExceeded: the prompt leaves no room for a token, or prompt + max_tokens exceed the context.
            InvalidRequest: a field is out of range (a token id beyond the vocabulary, an empty prompt, …).
            Overloaded: the queue is full.
            PipelineLost: there is no running pipeline.

        """
        ...

    def status(self) -> HeadStatus: ...

    def ready(self) -> bool:
        """Whether a real token went through every stage of the running plan, and none of its links failed since."""
        ...
