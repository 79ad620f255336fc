"""Between proto messages and our dataclasses, both ways: the only file that knows both. Checks what peers may forge.

Every reader raises ProtocolError for a message that no peer of our version sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TypeVar

from hyperlane import __version__
from hyperlane.cluster import weight_messages
from hyperlane.cluster.address_messages import address_from, node_from
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.core import (
    Address,
    ElementType,
    Epoch,
    HeadId,
    LayerRange,
    ModelFacts,
    NodeId,
    Precision,
    RopeFacts,
    StageSpec,
    WeightForm,
    WorkerFacts,
)
from hyperlane.errors import ProtocolError, VersionMismatch
from hyperlane.stage.orders import HostHealth, LinkPeers, LoadOrder, LoadProgress, StageKey
from hyperlane.stage.stage import StageHealth, StageState

CONTROL_PROTOCOL = 2
"""Raised whenever a message changes its meaning. Data links carry a number of their own."""

HEAD_ID_BYTES = 16
SERIAL_BYTES = 20
MAX_VERSION = 32
MAX_HOSTS = 16

T = TypeVar("T")

_ELEMENTS = {
    ElementType.F32: pb.ELEMENT_TYPE_F32,
    ElementType.F16: pb.ELEMENT_TYPE_F16,
    ElementType.BF16: pb.ELEMENT_TYPE_BF16,
}
_PRECISIONS = {
    Precision.RAW: pb.PRECISION_RAW,
    Precision.INT8: pb.PRECISION_INT8,
    Precision.INT4: pb.PRECISION_INT4,
    Precision.F32: pb.PRECISION_F32,
}
_STATES = {
    StageState.LOADING: pb.STAGE_STATE_LOADING,
    StageState.WAITING: pb.STAGE_STATE_WAITING,
    StageState.RUNNING: pb.STAGE_STATE_RUNNING,
    StageState.FAULTED: pb.STAGE_STATE_FAULTED,
    StageState.CLOSED: pb.STAGE_STATE_UNSPECIFIED,
}
_ELEMENT_OF = {number: element for element, number in _ELEMENTS.items()}
_PRECISION_OF = {number: precision for precision, number in _PRECISIONS.items()}
_STATE_OF = {number: state for state, number in _STATES.items()}


# --- versions and small things -------------------------------------------------------------------------------


def own_version() -> pb.Version:
    """What this program speaks."""
    return pb.Version(protocol=CONTROL_PROTOCOL, hyperlane=__version__)


def check_version(theirs: pb.Version, who: str) -> None:
    """Refuse a peer of another protocol.

    Raises:
        VersionMismatch: the message names both versions and the side to update.

    """
    if theirs.protocol == CONTROL_PROTOCOL:
        return
    older = who if theirs.protocol < CONTROL_PROTOCOL else "this machine"
    version = "".join(c for c in theirs.hyperlane if c.isascii() and c.isprintable())[:MAX_VERSION]
    raise VersionMismatch(
        f"{who} runs Hyperlane {version or 'of an unknown version'} (control protocol {theirs.protocol}), "
        f"this machine runs {__version__} (control protocol {CONTROL_PROTOCOL}); update Hyperlane on {older}"
    )


def head_from(data: bytes) -> HeadId:
    """A head's id as it came."""
    if len(data) != HEAD_ID_BYTES:
        raise ProtocolError(f"a head id has {HEAD_ID_BYTES} bytes, not {len(data)}")
    return HeadId(data)


def epoch_to(epoch: Epoch) -> pb.Epoch:
    """For a request."""
    return pb.Epoch(head=epoch.head, counter=epoch.counter)


def epoch_from(message: pb.Epoch) -> Epoch:
    """As it came."""
    return Epoch(head_from(message.head), message.counter)


def revoked_to(serials: Iterable[int]) -> pb.Revocations:
    """For a request."""
    return pb.Revocations(serials=[serial.to_bytes((serial.bit_length() + 7) // 8, "big") for serial in serials])


def revoked_from(message: pb.Revocations) -> frozenset[int]:
    """As it came."""
    if any(len(serial) > SERIAL_BYTES for serial in message.serials):
        raise ProtocolError(f"a certificate's serial number has at most {SERIAL_BYTES} bytes")
    return frozenset(int.from_bytes(serial, "big") for serial in message.serials)


def element_to(element: ElementType) -> int:
    """The enum's number."""
    return int(_ELEMENTS[element])


def element_from(number: int) -> ElementType:
    """As it came."""
    return _known(_ELEMENT_OF, number, "element type")


def _known(table: Mapping[int, T], number: int, what: str) -> T:
    if number not in table:
        raise ProtocolError(f"{what} {number} is unknown")
    return table[number]


# --- models and stages ---------------------------------------------------------------------------------------


def _rope_to(rope: RopeFacts) -> pb.RopeFacts:
    return pb.RopeFacts(theta=rope.theta, dims=rope.dims, scale=rope.scale, factors=rope.factors)


def _rope_from(message: pb.RopeFacts) -> RopeFacts:
    return RopeFacts(message.theta, message.dims, message.scale, tuple(message.factors))


def model_to(facts: ModelFacts) -> pb.ModelFacts:
    """For a request."""
    plain = {name: getattr(facts, name) for name in _PLAIN_FACTS}
    local = _rope_to(facts.rope_local) if facts.rope_local else None
    return pb.ModelFacts(**plain, rope=_rope_to(facts.rope), rope_local=local, weights=facts.weights.value)


def model_from(message: pb.ModelFacts) -> ModelFacts:
    """As it came."""
    plain = {name: getattr(message, name) for name in _PLAIN_FACTS}
    local = _rope_from(message.rope_local) if message.HasField("rope_local") else None
    return ModelFacts(**plain, rope=_rope_from(message.rope), rope_local=local, weights=_weights_from(message.weights))


def _weights_from(text: str) -> WeightForm:
    try:
        return WeightForm(text)
    except ValueError:
        raise ProtocolError(f"weights as '{text[:MAX_VERSION]}' are unknown here") from None


_PLAIN_FACTS = tuple(f.name for f in fields(ModelFacts) if f.name not in ("rope", "rope_local", "weights"))


def spec_to(spec: StageSpec) -> pb.StageSpec:
    """For a request."""
    return pb.StageSpec(
        model=model_to(spec.model),
        epoch=epoch_to(spec.epoch),
        index=spec.index,
        stages=spec.stages,
        first_layer=spec.layers.first,
        last_layer=spec.layers.last,
        slots=spec.slots,
        context=spec.context,
        threads=spec.threads,
        max_step_tokens=spec.max_step_tokens,
        precision_in=_PRECISIONS[spec.precision_in],
        precision_out=_PRECISIONS[spec.precision_out],
    )


def spec_from(message: pb.StageSpec) -> StageSpec:
    """As it came."""
    spec = StageSpec(
        model=model_from(message.model),
        epoch=epoch_from(message.epoch),
        index=message.index,
        stages=message.stages,
        layers=LayerRange(message.first_layer, message.last_layer),
        slots=message.slots,
        context=message.context,
        threads=message.threads,
        max_step_tokens=message.max_step_tokens,
        precision_in=_known(_PRECISION_OF, message.precision_in, "precision"),
        precision_out=_known(_PRECISION_OF, message.precision_out, "precision"),
    )
    if not spec.index < spec.stages or not 0 <= spec.layers.first < spec.layers.last <= spec.model.layers:
        raise ProtocolError(f"stage {spec.index} of {spec.stages} with layers {spec.layers} of {spec.model.layers}")
    if 0 in (spec.slots, spec.context, spec.max_step_tokens):
        raise ProtocolError("a stage has at least one slot, one position and one token a step")
    return spec


# --- the calls -----------------------------------------------------------------------------------------------


def describe_to(worker: WorkerFacts, *, holds_model: bool, share_port: int = 0) -> pb.DescribeResponse:
    """A worker's answer. Its addresses are the caller's to fill in: it cannot know by which of them it is reached."""
    return pb.DescribeResponse(
        version=own_version(),
        name=worker.name,
        data_port=worker.data.port,
        device=worker.device,
        provider=worker.provider,
        threads=worker.threads,
        memory_total=worker.memory_total,
        memory_free=worker.memory_free,
        memory_pool=worker.memory_pool,
        element=_ELEMENTS[worker.element],
        runtime_version=worker.runtime_version,
        holds_model=holds_model,
        node=bytes.fromhex(worker.node),
        machine=worker.machine,
        cluster=worker.cluster,
        hosts=worker.hosts,
        cores=worker.cores,
        share_port=share_port,
        host=worker.host,
        pool_free=worker.pool_free,
    )


def describe_from(message: pb.DescribeResponse, control: Address) -> WorkerFacts:
    """What a worker said of itself; its data port is reached at the host of the control address that answered."""
    return WorkerFacts(
        name=message.name,
        control=control,
        data=address_from(pb.Address(host=control.host, port=message.data_port)),
        device=message.device,
        provider=message.provider,
        threads=message.threads,
        memory_total=message.memory_total,
        memory_free=message.memory_free,
        element=element_from(message.element),
        hyperlane_version=message.version.hyperlane,
        protocol=message.version.protocol,
        runtime_version=message.runtime_version,
        memory_pool=message.memory_pool,
        node=message.node.hex(),
        machine=message.machine,
        cluster=message.cluster,
        hosts=tuple(message.hosts[:MAX_HOSTS]),
        cores=message.cores,
        host=message.host,
        pool_free=message.pool_free,
    )


def load_to(order: LoadOrder, revoked: Iterable[int] = ()) -> pb.LoadRequest:
    """For a request. `revoked`: serial numbers of certificates that were taken back."""
    return pb.LoadRequest(
        version=own_version(),
        spec=spec_to(order.spec),
        weights=weight_messages.sources_to(order.weights),
        weight_bytes=order.weight_bytes,
        kv_bytes=order.kv_bytes,
        workspace_bytes=order.workspace_bytes,
        node_before=(order.peers.before if order.peers else None) or b"",
        revoked=revoked_to(revoked),
        held=_stage_to(order.held),
    )


def load_from(message: pb.LoadRequest, head: NodeId | None = None) -> LoadOrder:
    """As it came. `head`: the node that the caller's certificate names; None on a plain connection."""
    sources = weight_messages.sources_from(message.weights)
    spec = spec_from(message.spec)
    peers = LinkPeers(head, node_from(message.node_before)) if head is not None else None
    held = _stage_from(message.held, spec.epoch.head) if message.HasField("held") else None
    return LoadOrder(spec, sources, message.weight_bytes, message.kv_bytes, message.workspace_bytes, peers, held)


def progress_to(progress: LoadProgress) -> pb.LoadResponse:
    """For a response."""
    sources = [pb.SourceBytes(kind=kind, bytes=count) for kind, count in progress.sources]
    return pb.LoadResponse(
        progress=pb.LoadProgress(
            phase=progress.phase, done=progress.done, total=progress.total, rate=progress.rate, sources=sources
        )
    )


def ready_to(element: ElementType, private_bytes: int) -> pb.LoadResponse:
    """For a response."""
    return pb.LoadResponse(ready=pb.LoadReady(element=_ELEMENTS[element], private_bytes=private_bytes))


def progress_from(message: pb.LoadProgress) -> LoadProgress:
    """As it came."""
    sources = tuple((source.kind, source.bytes) for source in message.sources)
    return LoadProgress(message.phase, message.done, message.total, message.rate, sources)


def unload_to(head: HeadId, key: StageKey | None) -> pb.UnloadRequest:
    """For a request."""
    return pb.UnloadRequest(head=head, stage=_stage_to(key))


def unload_from(message: pb.UnloadRequest) -> tuple[HeadId, StageKey | None]:
    """As it came."""
    head = head_from(message.head)
    return head, _stage_from(message.stage, head) if message.HasField("stage") else None


def _stage_to(key: StageKey | None) -> pb.StageName | None:
    return pb.StageName(counter=key.epoch.counter, index=key.index) if key else None


def _stage_from(message: pb.StageName, head: HeadId) -> StageKey:
    return StageKey(Epoch(head, message.counter), message.index)


def health_to(health: HostHealth) -> pb.HealthResponse:
    """For a response."""
    return pb.HealthResponse(
        holds_lease=health.holds_lease,
        lease_ms=round(health.lease_s * 1000),
        draining=health.draining,
        memory_free=health.memory_free,
        stages=[_stage_health_to(key, stage) for key, stage in health.stages],
    )


def _stage_health_to(key: StageKey, stage: StageHealth) -> pb.StageHealth:
    return pb.StageHealth(
        counter=key.epoch.counter,
        index=key.index,
        state=_STATES[stage.state],
        still_ms=round(stage.still_s * 1000),
        computing=stage.computing,
        steps=stage.steps,
        fault=stage.fault,
    )


def health_from(message: pb.HealthResponse, head: HeadId) -> HostHealth:
    """What a worker says of the stages of this head."""
    stages = tuple(
        (
            StageKey(Epoch(head, s.counter), s.index),
            StageHealth(_known(_STATE_OF, s.state, "state"), s.still_ms / 1000, s.computing, s.steps, s.fault),
        )
        for s in message.stages
    )
    return HostHealth(message.holds_lease, message.lease_ms / 1000, message.draining, message.memory_free, stages)
