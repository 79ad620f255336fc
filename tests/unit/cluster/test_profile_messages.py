"""Profile and MeasurePath there and back, and what no peer of ours sends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.planner.curve import Curve
from hyperlane.cluster.profile import messages
from hyperlane.cluster.profile.messages import PathOrder, PathResult
from hyperlane.cluster.profile.shape import DeviceProfile, ProfileShape
from hyperlane.core import Address, HeadId, NodeId
from hyperlane.errors import ProtocolError
from hyperlane.models import inventory
from hyperlane.testing.toy import toy_facts

MODEL = toy_facts()
TYPES = ("Q4_0",) * len(inventory.layer_tensors(MODEL, 0))
SHAPE = ProfileShape(MODEL, (TYPES, TYPES), "Q8_0", "Q6_K", (1, 2, 4), (2, 8, 64), 576, 256, 4096)
PROFILE = DeviceProfile(
    Curve(((1, 1e-3), (4, 2e-3))),
    Curve(((2, 1e-3),)),
    Curve.flat(1e-5),
    Curve.per_unit(2e-3),
    5e-5,
    1 << 20,
    9 << 20,
    7,
    crowded=True,
)
HEAD, NODE = HeadId(b"h" * 16), NodeId(b"n" * 16)


def test_a_shape_crosses_the_wire():
    message = messages.profile_to(SHAPE, [5], again=True)
    there = pb.ProfileRequest.FromString(message.SerializeToString())
    assert messages.profile_from(there) == SHAPE
    assert there.again


@pytest.mark.parametrize(
    "broken",
    [
        replace(SHAPE, layers=()),
        replace(SHAPE, layers=(("Q4_0",),)),
        replace(SHAPE, layers=(("Q9_X",) * len(TYPES),)),
        replace(SHAPE, output="F128"),
        replace(SHAPE, rows=(1, 1)),
        replace(SHAPE, rows=(2, 4)),
        replace(SHAPE, rows=(1, 1 << 20)),
        replace(SHAPE, chunks=()),
        replace(SHAPE, chunks=(1, 2)),
    ],
    ids=str,
)
def test_what_would_measure_nothing_or_for_ever_is_refused(broken):
    with pytest.raises(ProtocolError):
        messages.profile_from(messages.profile_to(broken, (), again=False))


def test_a_profile_crosses_the_wire():
    assert messages.device_from(messages.device_to(PROFILE).profile) == PROFILE


@pytest.mark.parametrize(
    "message",
    [
        pb.DeviceProfile(),
        pb.DeviceProfile(step_s=-1.0),
        pb.DeviceProfile(step_s=float("nan")),
        pb.DeviceProfile(layer_decode=[pb.CurvePoint(size=1, seconds=float("inf"))]),
    ],
    ids=["no curve", "negative", "nan", "infinite"],
)
def test_costs_that_are_none_are_refused(message):
    with pytest.raises(ProtocolError):
        messages.device_from(message)


@pytest.mark.parametrize("node", [None, NODE])
def test_an_order_for_a_path_crosses_the_wire(node):
    order = PathOrder(HEAD, (Address("10.0.0.5", 7421), Address("fd00::5", 7421)), node)
    assert messages.path_from(messages.path_to(order, ())) == order


def test_an_order_without_an_address_or_with_very_many_is_refused():
    for count in (0, messages.MAX_TARGETS + 1):
        order = PathOrder(HEAD, (Address("10.0.0.5", 7421),) * count)
        with pytest.raises(ProtocolError, match="addresses"):
            messages.path_from(messages.path_to(order, ()))


def test_results_cross_the_wire_and_impossible_ones_do_not():
    found = (PathResult(Address("a", 1), 1e-4, 1e8), PathResult(Address("b", 1), failure="nothing answers"))
    assert messages.results_from(messages.results_to(found)) == found
    for broken in (PathResult(Address("a", 1)), PathResult(Address("a", 1), float("nan"), 1e8)):
        with pytest.raises(ProtocolError):
            messages.results_from(messages.results_to([broken]))
