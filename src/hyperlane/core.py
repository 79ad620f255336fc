"""The vocabulary of Hyperlane as plain frozen data: epochs, rows, plans, requests, events.

Imports nothing of ours and knows no socket, clock, engine or file. `docs/architecture.md` defines every word.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NewType, Protocol

HeadId = NewType("HeadId", bytes)
"""16 random bytes that name a head; made at its first start and kept."""

NodeId = NewType("NodeId", bytes)
"""16 random bytes that name a machine's state directory; made at its first start, bound to the machine, and kept."""

ClusterId = NewType("ClusterId", bytes)
"""16 random bytes that name a cluster; made with its certificate authority."""

TokenId = NewType("TokenId", int)
"""An index into a model's vocabulary."""

CANDIDATES_K = 64
"""How many of the largest logits the last stage returns for a wanted position unless the row asks otherwise."""


@dataclass(frozen=True, slots=True, order=True)
class Epoch:
    """The number of a plan. `counter` is 64 bits and never goes back for one head, restarts included."""

    head: HeadId
    counter: int


class Precision(enum.StrEnum):
    """How hidden states are packed on a link for a whole epoch."""

    RAW = "raw"
    INT8 = "int8"
    INT4 = "int4"


class ElementType(enum.StrEnum):
    """An engine's own activation type: what a `raw` link carries."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"

    @property
    def bytes(self) -> int:
        """Bytes of one value."""
        return 4 if self is ElementType.F32 else 2


# --- what a model is -----------------------------------------------------------------------------------------


class WeightForm(enum.StrEnum):
    """What matrices that a model stores in full (F32, F16, BF16) become while they are loaded.

    FP16: they are not quantised (a CPU computes with them in float32). INT8, INT4: blocks of 32, rounded to nearest;
    with INT4 the embedding and the projection, which need it most, are INT8.
    """

    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True, slots=True)
class RopeFacts:
    """Rotary embedding of one kind of layer. `dims` of a head's values are rotated, pairs taken half a head apart.

    `factors`: one divisor per rotated pair (Llama 3's `rope_freqs`), empty for none. `scale` divides positions.
    """

    theta: float
    dims: int
    scale: float = 1.0
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """All that a stage's graph, a plan and a tokenizer need to know of a model, apart from its weights.

    `fingerprint` identifies the content (hex SHA-256 of the whole file, as hubs state it): a worker's copy is the same
    model exactly when it is equal. `window` is the number of positions a local layer sees (0: all layers are
    global); `global_every` says that layer i is global when (i + 1) % global_every == 0. `interleaved_heads`: the rows
    of a head of `attn_q` and `attn_k` lie in pairs that rotate together, not half a head apart. `norm_bias` is what the
    weights of norms are stored less. `weights` is what was asked for, not a property of the files.
    """

    name: str
    family: str
    fingerprint: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rms_eps: float
    rope: RopeFacts
    tied_output: bool
    window: int = 0
    global_every: int = 0
    rope_local: RopeFacts | None = None
    attention_scale: float = 0.0
    embedding_scale: float = 1.0
    logit_softcap: float = 0.0
    attention_softcap: float = 0.0
    interleaved_heads: bool = False
    norm_bias: float = 0.0
    weights: WeightForm = WeightForm.FP16


# --- frames --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of a step frame: `count` tokens at positions `start` … of KV slot `slot`.

    A start below what the slot holds overwrites the KV entries there: that is rollback, and it is exact.
    `want`: ascending offsets (0 ≤ offset < count) of the tokens whose next-token candidates are asked for.
    `top_k`: how many candidates for each. `extra_ids`: tokens whose logits are asked for besides.
    `temperature`: the last stage also returns the log-sum-exp of logits / temperature (1.0 for greedy).
    `whole_logits`: the answer to the wanted positions is the whole logit vector, in a LOGITS frame's payload.
    """

    slot: int
    start: int
    count: int
    want: tuple[int, ...] = ()
    top_k: int = CANDIDATES_K
    extra_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    whole_logits: bool = False


@dataclass(frozen=True, slots=True)
class StageTiming:
    """What one stage says of one frame, in microseconds of its own clock; the head needs no common clock.

    `waited_us`: from being ready to receive until the frame's header was there. `computed_us`: engine time.
    `overhead_us`: everything else between the header's arrival and the start of the send.
    `previous_send_us`: how long sending the frame before this one took. `sent_bytes`: of the frame being passed on.
    """

    stage: int
    waited_us: int
    computed_us: int
    overhead_us: int
    previous_send_us: int
    sent_bytes: int


# --- plans ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a TCP port is reached. Prints as HOST:PORT, IPv6 hosts in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read HOST:PORT or [IPV6]:PORT.

        Raises:
            ValueError: the text has no port, or the port is not within 0 … 65535.

        """
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"'{text}' is not HOST:PORT; write for instance 192.168.1.20:7420 or [fe80::1]:7420")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"'{text}': write an IPv6 address in brackets, as [{host}]:{port}")
        return cls(host, int(port))


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker says of itself (Describe). Memory in bytes, measured at the time of asking.

    `memory_pool`: workers that name the same pool take their memory from one another (one machine's RAM, one GPU's
    memory); empty: a pool of its own. `node` (its id), `machine` (a hash) and `cluster` (the beginning of its id) are
    in hex: who it says it is; empty when it does not. `hosts`: addresses at which its data port may be reached as well.
    `cores`: those of its machine that it may compute on; 0: not known.
    """

    name: str
    control: Address
    data: Address
    device: str
    provider: str
    threads: int
    memory_total: int
    memory_free: int
    element: ElementType
    hyperlane_version: str
    protocol: int
    runtime_version: str
    memory_pool: str = ""
    node: str = ""
    machine: str = ""
    cluster: str = ""
    hosts: tuple[str, ...] = ()
    cores: int = 0


@dataclass(frozen=True, slots=True)
class LayerRange:
    """Layers `first` … `last` − 1 of a model."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def __str__(self) -> str:
        return f"{self.first}-{self.last - 1}"


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage of a plan and the bytes it was counted with."""

    index: int
    worker: WorkerFacts
    layers: LayerRange
    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan was expected to do when it was made, from what was measured. Seconds, tokens per second.

    `token_s`: per token of one stream; `stages_s`: what each stage computes of that. `ttft_s`: until the first token of
    `prompt_tokens` on an idle pipeline. `many_rate`: of `streams` streams together, split into `groups` groups, with
    `frames` frames in flight at most.
    """

    token_s: float
    ttft_s: float
    prompt_tokens: int
    many_rate: float
    streams: int
    groups: int
    frames: int
    stages_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The ordered stages, the precision of the P + 1 links of the ring, KV slots and context (tokens a slot).

    `prediction`: None for a plan that was made without measurements.
    """

    model: ModelFacts
    stages: tuple[StagePlan, ...]
    slots: int
    context: int
    precisions: tuple[Precision, ...]
    prediction: Prediction | None = None


@dataclass(frozen=True, slots=True)
class StageSpec:
    """All that a worker needs to build one stage: what Load carries, with the weights' whereabouts beside it."""

    model: ModelFacts
    epoch: Epoch
    index: int
    stages: int
    layers: LayerRange
    slots: int
    context: int
    threads: int
    max_step_tokens: int
    precision_in: Precision = Precision.RAW
    precision_out: Precision = Precision.RAW

    @property
    def is_first(self) -> bool:
        """Whether this stage embeds token ids."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage projects to the vocabulary."""
        return self.index == self.stages - 1


# --- requests ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is picked; the defaults are the OpenAI API's, `temperature` 0 is greedy.

    `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 switch a filter off. `logit_bias`: (token, bias) pairs.
    `logprobs`: None for none, else how many alternatives to report beside the chosen token (0 … 20).
    `seed`: None draws one; the same seed, request and plan give the same tokens, whatever a slot holds already.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate. `max_tokens` None: until the context is full. `stop`: strings that end the answer."""

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


class FinishReason(enum.StrEnum):
    """Why a request ended without error."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its text's bytes and its log-probability under the model (temperature 1, before penalties)."""

    token: int
    text: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """A generated token's log-probability with the alternatives that were asked for, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer: never half a character, never part of a stop string. `text` may be empty."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request. `cached_tokens`: of the prompt, were in a slot already and not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RequestTimings:
    """Seconds: waiting for a slot, from submission to the first token (TTFT), and from the first token to the last."""

    queued_s: float
    ttft_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request that was served."""

    reason: FinishReason
    usage: Usage
    timings: RequestTimings


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a request that could not be served; `error` is one of `hyperlane.errors`."""

    error: Exception


Event = TextDelta | Finished | Failed


# --- seams that several rooms share --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StageCost:
    """Bytes that one layer, the embedding and the output projection take on a device, as the planner counts them."""

    layer_weights: tuple[int, ...]
    embedding: int
    output: int
    kv_per_layer: int
    workspace: int


class Planner(Protocol):
    """Facts in, plan out; pure. `node` hands one to the head."""

    def plan(
        self, model: ModelFacts, workers: Sequence[WorkerFacts], cost: StageCost, slots: int, context: int
    ) -> Plan:
        """Place every layer of the model on the workers.

        Raises:
            DoesNotFit: the message says which bytes are missing where and what would make it fit.

        """
        ...


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation. `role`: system, user, assistant or tool."""

    role: str
    content: str


class EventStream(Protocol):
    """The events of one request: any number of `TextDelta`, then exactly one `Finished` or `Failed`, then the end.

    Iterated once, either from a thread or from a coroutine. A reader that stops early calls `cancel`.
    """

    def __iter__(self) -> Iterator[Event]: ...

    def __aiter__(self) -> AsyncIterator[Event]: ...

    def cancel(self) -> None:
        """End the request: its slot is free within one step. From any thread, idempotent."""
        ...


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
    """

    source: str
    target: str
    address: Address
    rtt_us: float
    bytes_per_s: float
    in_plan: bool = False


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
