"""Every message there and back, and what no peer of ours sends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlane.cluster import address_messages, messages, weight_messages
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
from hyperlane.models.ranges import RemoteFile, TensorPlace
from hyperlane.models.weights import TensorInfo
from hyperlane.stage.orders import HostHealth, LoadOrder, LoadProgress, StageKey, TensorPeer, WeightSources
from hyperlane.stage.stage import StageHealth, StageState

HEAD = HeadId(bytes(range(16)))
small = st.integers(1, 1 << 31)
size = st.integers(0, 1 << 62)
number = st.floats(allow_nan=False, allow_infinity=False)
ropes = st.builds(RopeFacts, theta=number, dims=small, scale=number, factors=st.lists(number, max_size=4).map(tuple))
facts = st.builds(
    ModelFacts,
    name=st.text(max_size=8),
    family=st.sampled_from(["llama", "gemma3"]),
    fingerprint=st.text("0123456789abcdef", min_size=64, max_size=64),
    layers=st.just(8),
    **dict.fromkeys(("hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "context"), small),
    rms_eps=number,
    rope=ropes,
    tied_output=st.booleans(),
    window=small,
    global_every=small,
    rope_local=st.none() | ropes,
    **dict.fromkeys(("attention_scale", "embedding_scale", "logit_softcap", "attention_softcap"), number),
    interleaved_heads=st.booleans(),
    norm_bias=number,
    weights=st.sampled_from(WeightForm),
)
specs = st.builds(
    StageSpec,
    model=facts,
    epoch=st.builds(Epoch, head=st.binary(min_size=16, max_size=16).map(HeadId), counter=size),
    index=st.integers(0, 2),
    stages=st.integers(3, 9),
    layers=st.tuples(st.integers(0, 7), st.integers(1, 8)).filter(lambda r: r[0] < r[1]).map(lambda r: LayerRange(*r)),
    **dict.fromkeys(("slots", "context", "threads", "max_step_tokens"), small),
    precision_in=st.sampled_from(Precision),
    precision_out=st.sampled_from(Precision),
)
addresses = st.builds(Address, host=st.sampled_from(["127.0.0.1", "fe80::1", "node-a"]), port=st.integers(1, 65535))
places = st.builds(
    TensorPlace,
    info=st.builds(
        TensorInfo,
        name=st.text(max_size=9),
        shape=st.lists(small, min_size=1, max_size=3).map(tuple),
        type=st.sampled_from(["Q4_K", "BF16"]),
        nbytes=size,
    ),
    file=st.integers(0, 2),
    offset=size,
    digest=st.just("") | st.binary(min_size=32, max_size=32).map(bytes.hex),
)
remote_files = st.builds(
    RemoteFile, url=st.text(max_size=9), size=size, digest=st.text(max_size=9), etag=st.text(max_size=9)
)
orders = st.builds(
    LoadOrder,
    spec=specs,
    weights=st.builds(
        WeightSources,
        path_hint=st.text(max_size=9),
        server=st.none() | addresses,
        token=st.text(max_size=9),
        tensors=st.lists(places, max_size=3).map(tuple),
        peers=st.lists(
            st.builds(TensorPeer, addresses, st.none() | st.binary(min_size=16, max_size=16).map(NodeId)), max_size=2
        ).map(tuple),
        files=st.lists(remote_files, min_size=3, max_size=4).map(tuple),
    ),
    **dict.fromkeys(("weight_bytes", "kv_bytes", "workspace_bytes"), size),
)

WORKER = WorkerFacts(
    name="node-a:7420",
    control=Address("10.0.0.5", 7420),
    data=Address("10.0.0.5", 7421),
    device="cpu",
    provider="CPUExecutionProvider",
    threads=4,
    memory_total=16 << 30,
    memory_free=9 << 30,
    element=ElementType.F32,
    hyperlane_version="0.1.0",
    protocol=messages.CONTROL_PROTOCOL,
    runtime_version="1.31.1",
    memory_pool="abc",
    host="0123456789abcdef",
    pool_free=12 << 30,
)
SPEC = StageSpec(
    model=ModelFacts("m", "llama", "0" * 64, 4, 8, 1, 1, 8, 8, 99, 64, 1e-5, RopeFacts(1e4, 8), True),
    epoch=Epoch(HEAD, 3),
    index=0,
    stages=2,
    layers=LayerRange(0, 2),
    slots=4,
    context=64,
    threads=1,
    max_step_tokens=32,
)


def over_the_wire(message):
    return type(message).FromString(message.SerializeToString())


@given(orders)
def test_a_load_comes_back_as_it_was(order):
    assert messages.load_from(over_the_wire(messages.load_to(order))) == order


def test_the_stage_whose_engine_serves_on_comes_with_a_load():
    order = LoadOrder(SPEC, WeightSources(), 1, 2, 3, held=StageKey(Epoch(HEAD, 2), 1))
    assert messages.load_from(over_the_wire(messages.load_to(order))) == order


def test_a_description_comes_back_with_the_hosts_that_were_dialled():
    message = over_the_wire(messages.describe_to(replace(WORKER, control=Address("0.0.0.0", 1)), holds_model=True))
    assert messages.describe_from(message, WORKER.control) == replace(WORKER, hyperlane_version=messages.__version__)
    assert message.holds_model


@pytest.mark.parametrize("state", [state for state in StageState if state is not StageState.CLOSED])
def test_health_comes_back_as_it_was(state):
    stage = StageHealth(state, 1.25, computing=True, steps=9, fault="why")
    health = HostHealth(True, 14.5, False, 77, ((StageKey(Epoch(HEAD, 3), 1), stage),))
    assert messages.health_from(over_the_wire(messages.health_to(health)), HEAD) == health


@pytest.mark.parametrize("key", [None, StageKey(Epoch(HEAD, 1 << 60), 0)])
def test_an_unload_comes_back_as_it_was(key):
    assert messages.unload_from(over_the_wire(messages.unload_to(HEAD, key))) == (HEAD, key)


def test_progress_comes_back_as_it_was():
    progress = LoadProgress("fetching weights", 3, 9, 1.5e8, (("cache", 1), ("peer", 2)))
    assert messages.progress_from(over_the_wire(messages.progress_to(progress)).progress) == progress


@pytest.mark.parametrize(
    "change", [{"digest": b"short"}, {"file": 1}], ids=["a digest of another length", "a file that is not there"]
)
def test_a_tensors_place_that_cannot_be_is_refused(change):
    info = pb.TensorInfo(name="t", shape=[4], type="F32", nbytes=16)
    fields = {"info": info, "digest": bytes(32), **change}
    message = pb.WeightSources(tensors=[pb.TensorPlace(**fields)], files=[pb.RemoteFile(url="u", size=1)])
    with pytest.raises(ProtocolError):
        weight_messages.sources_from(message)


@pytest.mark.parametrize(
    "change",
    [
        {"index": 2},
        {"layers": LayerRange(2, 2)},
        {"layers": LayerRange(0, 5)},
        {"slots": 0},
        {"context": 0},
        {"max_step_tokens": 0},
        {"epoch": Epoch(HeadId(b"short"), 1)},
    ],
)
def test_a_stage_that_cannot_be_is_refused(change):
    with pytest.raises(ProtocolError):
        messages.spec_from(messages.spec_to(replace(SPEC, **change)))


def test_an_unknown_precision_is_refused():
    message = messages.spec_to(SPEC)
    message.precision_in = 99
    with pytest.raises(ProtocolError, match="precision 99"):
        messages.spec_from(message)


@pytest.mark.parametrize("address", [pb.Address(), pb.Address(host="a"), pb.Address(host="a", port=65536)])
def test_an_address_without_host_or_port_is_refused(address):
    with pytest.raises(ProtocolError):
        address_messages.address_from(address)


@pytest.mark.parametrize(("theirs", "older"), [(0, "the worker at a:1"), (99, "this machine")])
def test_another_version_is_refused_naming_both_and_whom_to_update(theirs, older):
    with pytest.raises(VersionMismatch) as raised:
        messages.check_version(pb.Version(protocol=theirs, hyperlane="9.9"), "the worker at a:1")
    assert "9.9" in str(raised.value)
    assert messages.__version__ in str(raised.value)
    assert str(raised.value).endswith(f"update Hyperlane on {older}")


def test_weights_in_a_form_of_the_future_are_refused():
    message = messages.model_to(SPEC.model)
    message.weights = "int3"
    with pytest.raises(ProtocolError, match="'int3'"):
        messages.model_from(message)
