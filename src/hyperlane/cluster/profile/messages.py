"""Between the messages of Profile and MeasurePath and our dataclasses, both ways. Checks what peers may forge.

Every reader raises ProtocolError for a message that no peer of our version sends.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hyperlane.cluster import address_messages, messages
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.planner.curve import Curve
from hyperlane.cluster.profile.shape import SIZES_LIMIT, DeviceProfile, ProfileShape
from hyperlane.core import Address, HeadId, NodeId
from hyperlane.errors import ProtocolError
from hyperlane.models import inventory
from hyperlane.models.quant import is_supported
from hyperlane.stage.orders import LoadProgress

MAX_TARGETS = 16
_CURVES = ("layer_decode", "layer_prefill", "embed", "project")


def profile_to(shape: ProfileShape, revoked: Iterable[int], *, again: bool) -> pb.ProfileRequest:
    """For a request."""
    return pb.ProfileRequest(
        version=messages.own_version(),
        model=messages.model_to(shape.model),
        layers=[pb.LayerTypes(types=types) for types in shape.layers],
        embedding=shape.embedding,
        output=shape.output,
        rows=shape.rows,
        chunks=shape.chunks,
        kv_entries=shape.kv_entries,
        prompt_entries=shape.prompt_entries,
        context=shape.context,
        again=again,
        revoked=messages.revoked_to(revoked),
    )


def profile_from(message: pb.ProfileRequest) -> ProfileShape:
    """As it came."""
    shape = ProfileShape(
        model=messages.model_from(message.model),
        layers=tuple(tuple(layer.types) for layer in message.layers),
        embedding=message.embedding,
        output=message.output,
        rows=tuple(message.rows),
        chunks=tuple(message.chunks),
        kv_entries=message.kv_entries,
        prompt_entries=message.prompt_entries,
        context=message.context,
    )
    tensors = len(inventory.layer_tensors(shape.model, 0))
    if not 0 < len(shape.layers) <= SIZES_LIMIT or any(len(types) != tensors for types in shape.layers):
        raise ProtocolError(f"{len(shape.layers)} layers to measure, or one without a type for each tensor")
    kinds = {kind for types in shape.layers for kind in types} | {shape.embedding, shape.output}
    if unknown := sorted(kind for kind in kinds if kind and not is_supported(kind)):
        raise ProtocolError(f"weights of type {', '.join(unknown)} cannot be measured here: update the older Hyperlane")
    for first, sizes in ((1, shape.rows), (2, shape.chunks)):
        ascending = all(one < other for one, other in itertools.pairwise(sizes))
        if not sizes or sizes[0] != first or sizes[-1] > SIZES_LIMIT or not ascending:
            raise ProtocolError(f"sizes to measure that do not ascend from {first} to at most {SIZES_LIMIT}: {sizes}")
    return shape


def measuring_to(progress: LoadProgress) -> pb.ProfileResponse:
    """For a response."""
    return pb.ProfileResponse(progress=pb.LoadProgress(phase=progress.phase, done=progress.done, total=progress.total))


def device_to(profile: DeviceProfile) -> pb.ProfileResponse:
    """For a response."""
    curves = {name: _points(getattr(profile, name)) for name in _CURVES}
    return pb.ProfileResponse(
        profile=pb.DeviceProfile(
            **curves,
            step_s=profile.step_s,
            layer_bytes=profile.layer_bytes,
            process_bytes=profile.process_bytes,
            measured_unix_s=profile.measured_s,
            crowded=profile.crowded,
        )
    )


def device_from(message: pb.DeviceProfile) -> DeviceProfile:
    """As it came."""
    if not (math.isfinite(message.step_s) and message.step_s >= 0):
        raise ProtocolError(f"a step that takes {message.step_s} s besides its layers")
    return DeviceProfile(
        _curve(message.layer_decode),
        _curve(message.layer_prefill),
        _curve(message.embed),
        _curve(message.project),
        message.step_s,
        message.layer_bytes,
        message.process_bytes,
        message.measured_unix_s,
        message.crowded,
    )


def _points(curve: Curve) -> list[pb.CurvePoint]:
    return [pb.CurvePoint(size=size, seconds=seconds) for size, seconds in curve.points]


def _curve(points: Sequence[pb.CurvePoint]) -> Curve:
    try:
        return Curve(tuple((point.size, point.seconds) for point in points))
    except ValueError as error:
        raise ProtocolError(str(error)) from error


# --- paths -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PathOrder:
    """One worker's data port at several addresses. `node`: whom its certificate must name; None: a plain path."""

    head: HeadId
    targets: tuple[Address, ...]
    node: NodeId | None = None


@dataclass(frozen=True, slots=True)
class PathResult:
    """One address. `failure`: why it could not be measured, empty if it could."""

    target: Address
    rtt_s: float = 0.0
    bytes_per_s: float = 0.0
    failure: str = ""


def path_to(order: PathOrder, revoked: Iterable[int]) -> pb.MeasurePathRequest:
    """For a request."""
    return pb.MeasurePathRequest(
        head=order.head,
        targets=[address_messages.address_to(one) for one in order.targets],
        node=order.node or b"",
        revoked=messages.revoked_to(revoked),
    )


def path_from(message: pb.MeasurePathRequest) -> PathOrder:
    """As it came."""
    if not 0 < len(message.targets) <= MAX_TARGETS:
        raise ProtocolError(f"paths are measured to 1 … {MAX_TARGETS} addresses, not to {len(message.targets)}")
    targets = tuple(address_messages.address_from(one) for one in message.targets)
    return PathOrder(messages.head_from(message.head), targets, address_messages.node_from(message.node))


def results_to(results: Iterable[PathResult]) -> pb.MeasurePathResponse:
    """For a response."""
    return pb.MeasurePathResponse(
        results=[
            pb.PathResult(
                target=address_messages.address_to(one.target),
                rtt_s=one.rtt_s,
                bytes_per_s=one.bytes_per_s,
                failure=one.failure,
            )
            for one in results
        ]
    )


def results_from(message: pb.MeasurePathResponse) -> tuple[PathResult, ...]:
    """As they came."""
    results = tuple(
        PathResult(address_messages.address_from(one.target), one.rtt_s, one.bytes_per_s, one.failure)
        for one in message.results
    )
    for one in results:
        numbers = (one.rtt_s, one.bytes_per_s)
        if not all(map(math.isfinite, numbers)) or (not one.failure and min(numbers) <= 0):
            raise ProtocolError(f"a path to {one.target} of {one.rtt_s} s and {one.bytes_per_s} bytes/s")
    return results
