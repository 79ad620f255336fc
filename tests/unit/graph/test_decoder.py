"""Graphs of stages, looked at as graphs: nothing is computed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import onnx
import pytest

from hyperlane.core import LayerRange, ModelFacts, RopeFacts
from hyperlane.errors import UnsupportedModel
from hyperlane.graph import names
from hyperlane.graph.decoder import StageShape
from hyperlane.graph.families import build_stage
from hyperlane.graph.forms import MatrixForm, Offsets, part_path, values_name, weight_names
from hyperlane.models.layout import embedding_layout, layer_layout, output_layout

LLAMA = ModelFacts(
    name="m",
    family="llama",
    fingerprint="",
    layers=12,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=128,
    vocab=300,
    context=128,
    rms_eps=1e-5,
    rope=RopeFacts(1e4, 16),
    tied_output=True,
)
GEMMA = replace(LLAMA, family="gemma3", window=32, global_every=6, rope_local=RopeFacts(1e3, 16), embedding_scale=8.0)
FORM = MatrixForm(64, 64, 4, 32)


def forms_of(facts, layers, form=FORM):
    units = [embedding_layout(facts), output_layout(facts), *(layer_layout(facts, i) for i in layers)]
    return {part.path: (form,) for unit in units for part in unit.matrices}


def graph_of(facts, first=0, last=None, *, form=FORM, **shape):
    last = facts.layers if last is None else last
    layers = range(first, last)
    ends = {"embeds": first == 0, "projects": last == facts.layers}
    forms = forms_of(facts, layers, form)
    made = StageShape(facts, LayerRange(first, last), positions=129, forms=forms, **ends, **shape)
    return onnx.load_from_string(build_stage(made, [])).graph


def weights_of(facts, layers, form=FORM):
    units = [embedding_layout(facts), output_layout(facts), *(layer_layout(facts, i) for i in layers)]
    matrices = {name for path in forms_of(facts, layers) for name in weight_names(path, form)}
    return matrices | {values_name(path) for unit in units for path in unit.vectors}


@pytest.mark.parametrize("facts", [LLAMA, GEMMA])
@pytest.mark.parametrize("layers", [(0, 12), (0, 4), (4, 8), (8, 12)])
@pytest.mark.parametrize("form", [FORM, replace(FORM, offsets=Offsets.COLUMNS), MatrixForm(64, 64)])
def test_every_value_is_made_before_it_is_used(facts, layers, form):
    graph = graph_of(facts, *layers, form=form)
    known = {value.name for value in graph.input} | {value.name for value in graph.initializer}
    known |= weights_of(facts, range(*layers), form)
    for node in graph.node:
        assert set(node.input) - {""} <= known, node.name
        known |= set(node.output)
    assert {value.name for value in graph.output} <= known


@pytest.mark.parametrize("facts", [LLAMA, GEMMA])
def test_node_names_are_unique_paths(facts):
    found = [node.name for node in graph_of(facts).node]
    assert len(set(found)) == len(found)
    assert {"layer.3/attn", "layer.3/ffn/down", "output"} <= set(found)


def test_an_inner_stage_takes_and_gives_hidden_states_and_only_its_layers_entries():
    graph = graph_of(LLAMA, 4, 6)
    entries = [f"past.{layer}.{kv}" for layer in (4, 5) for kv in ("key", "value")]
    assert {value.name for value in graph.input} == {names.HIDDEN_IN, names.LENGTHS, names.TOTAL, *entries}
    assert {value.name for value in graph.output} == {
        names.HIDDEN_OUT,
        *(e.replace("past", "present") for e in entries),
    }


def test_of_the_last_layer_only_wanted_tokens_go_on_past_attention():
    by_name = {node.name: node for node in graph_of(LLAMA).node}
    assert by_name["layer.11/attn/out"].input[0] == "layer.11/attn/wanted"
    assert by_name["layer.10/attn/out"].input[0] == "layer.10/attn"


def test_gemma_sees_everything_in_every_sixth_layer_and_a_window_in_the_others():
    attention = {node.name: node for node in graph_of(GEMMA).node if node.op_type == "GroupQueryAttention"}
    for layer in range(12):
        node = attention[f"layer.{layer}/attn"]
        (window,) = (a.i for a in node.attribute if a.name == "local_window_size")
        is_global = layer in {5, 11}
        assert window == (-1 if is_global else 32)
        assert node.input[7] == ("rope.global/cos" if is_global else "rope.local/cos")


def test_block_sums_of_an_input_are_computed_once_for_all_its_matmuls():
    graph = graph_of(LLAMA, 4, 5, form=replace(FORM, offsets=Offsets.COLUMNS))
    assert len([node for node in graph.node if node.op_type == "ReduceSum"]) == 4


def test_parts_of_different_forms_are_concatenated():
    forms = forms_of(LLAMA, range(4, 5)) | {"layer.4/attn/qkv": (FORM, replace(FORM, rows=32, bits=8))}
    shape = StageShape(LLAMA, LayerRange(4, 5), embeds=False, projects=False, positions=129, forms=forms)
    by_name = {node.name: node for node in onnx.load_from_string(build_stage(shape, [])).graph.node}
    parts = [f"{part_path('layer.4/attn/qkv', i)}/part" for i in (0, 1)]
    assert list(by_name["layer.4/attn/qkv"].input) == parts
    assert by_name[parts[1]].input[1] == "layer.4/attn/qkv.1/packed"


def test_half_entries_are_cast_around_attention():
    graph = graph_of(LLAMA, 4, 5, half_cache=True)
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    assert types["past.4.key"] == onnx.TensorProto.FLOAT16
    assert [node.name for node in graph.node if node.op_type == "Cast"] == ["layer.4/attn/qkv/half", "layer.4/attn"]


def test_an_unknown_family_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match="mamba"):
        graph_of(replace(LLAMA, family="mamba"), 0, 0, form=FORM)


@pytest.mark.parametrize("facts", [LLAMA, GEMMA])
def test_tokens_taken_one_by_one_share_all_weights_and_hand_entries_on(facts):
    graph, usual = (graph_of(facts, 3, 5, singles=4 * n, half_cache=True) for n in (1, 0))
    attentions = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert len(attentions) == 2 * 4
    others = ("GroupQueryAttention", "Split", "Concat")
    assert [n.op_type for n in graph.node if n.op_type not in others] == [
        n.op_type for n in usual.node if n.op_type not in others
    ]
    chain = [node for node in attentions if node.name.startswith("layer.3/")]
    assert list(chain[0].input[3:5]) == [names.past(3, kv) for kv in names.KV]
    for before, after in pairwise(chain):
        assert before.output[1:] == after.input[3:5]
    assert list(chain[-1].output[1:]) == [names.present(3, kv) for kv in names.KV]
    given_back = {output.name for output in graph.output}
    assert {names.passing(3, "key", 2), names.present(3, "value"), names.passing(4, "value", 0)} <= given_back
