import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType, GGUFWriter

from hyperlane.core import ModelFacts, RopeFacts
from hyperlane.errors import MalformedModel, UnsupportedModel
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.models.inventory import all_tensors, layer_tensors, output_tensors
from hyperlane.testing.tiny_models import write_tiny_model

Values = dict[str, object]
Change = Callable[[Values, dict[str, np.ndarray]], None]


def facts_of(path: Path) -> ModelFacts:
    with GgufFile(path) as file:
        return read_facts(file)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., ModelFacts]:
    return lambda **fields: facts_of(write_tiny_model(tmp_path / "tiny.gguf", **fields))


LLAMA: Values = {
    "block_count": 2,
    "context_length": 128,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500_000.0,
}
GEMMA: Values = {**LLAMA, "attention.key_length": 16, "attention.sliding_window": 64}
SHAPES = ModelFacts("", "", "", 2, 32, 4, 2, 8, 64, 40, 128, 1e-5, RopeFacts(1e4, 8), tied_output=True)


def write(path: Path, family: str, values: Values, shapes: ModelFacts, tensors: dict[str, np.ndarray]) -> Path:
    """A file of a family with any metadata and, besides the tensors of `shapes`, any tensors; None leaves one out."""
    writer = GGUFWriter(path, family)
    for key, value in values.items():
        _add(writer, key if "general." in key or "tokenizer." in key else f"{family}.{key}", value)
    present = {name: np.ones(shape, np.float32) for name, shape in all_tensors(shapes).items()} | tensors
    for name, values_of in present.items():
        if values_of is not None:
            writer.add_tensor(name, values_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: object) -> None:
    match value:
        case None:
            pass
        case list():
            writer.add_array(key, value)
        case str():
            writer.add_string(key, value)
        case float():
            writer.add_key_value(key, value, GGUFValueType.FLOAT32)
        case _:
            writer.add_key_value(key, value, GGUFValueType.INT64)


@pytest.fixture
def llama(tmp_path: Path) -> Callable[..., ModelFacts]:
    def read(tensors: dict[str, np.ndarray] | None = None, **changes: object) -> ModelFacts:
        values = LLAMA | {key.replace("__", "."): value for key, value in changes.items()}
        shapes = replace(SHAPES, family="llama")
        return facts_of(write(tmp_path / "m.gguf", "llama", values, shapes, tensors or {}))

    return read


@pytest.fixture
def gemma(tmp_path: Path) -> Callable[..., ModelFacts]:
    def read(layers: int = 2, **changes: object) -> ModelFacts:
        values = GEMMA | {"block_count": layers} | {key.replace("__", "."): value for key, value in changes.items()}
        shapes = replace(SHAPES, family="gemma3", head_dim=16, layers=layers)
        return facts_of(write(tmp_path / "m.gguf", "gemma3", values, shapes, {}))

    return read


def test_facts_of_a_llama(tiny: Callable[..., ModelFacts]):
    facts = tiny(layers=3, vocab=300)
    assert facts == ModelFacts(
        name="Tiny llama",
        family="llama",
        fingerprint=facts.fingerprint,
        layers=3,
        hidden=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn=128,
        vocab=300,
        context=256,
        rms_eps=facts.rms_eps,
        rope=RopeFacts(theta=10_000.0, dims=16),
        tied_output=False,
        attention_scale=0.25,
        interleaved_heads=True,
    )
    assert facts.rms_eps == pytest.approx(1e-5)
    assert len(facts.fingerprint) == 64


def test_facts_of_a_gemma(tiny: Callable[..., ModelFacts]):
    facts = tiny(family="gemma3", head_dim=32, global_every=3)
    assert facts.family == "gemma3"
    assert (facts.head_dim, facts.tied_output) == (32, True)
    assert (facts.window, facts.global_every) == (16, 3)
    assert facts.rope == RopeFacts(theta=1_000_000.0, dims=32)
    assert facts.rope_local == RopeFacts(theta=10_000.0, dims=32)
    assert facts.embedding_scale == 8.0
    assert facts.attention_scale == 32**-0.5
    assert (facts.logit_softcap, facts.attention_softcap) == (0.0, 0.0)


def test_llama_3_brings_a_factor_for_each_rotated_pair(tiny: Callable[..., ModelFacts]):
    assert tiny(rope_factors=True).rope.factors == tuple(np.linspace(1, 8, 8, dtype=np.float32).tolist())


def test_a_models_output_may_be_its_embedding(tiny: Callable[..., ModelFacts]):
    facts = tiny(tied=True)
    assert facts.tied_output
    assert list(output_tensors(facts)) == ["output_norm.weight", "token_embd.weight"]
    assert list(output_tensors(tiny(tied=False))) == ["output_norm.weight", "output.weight"]


def test_the_tensors_of_a_layer_are_named_as_the_file_names_them(tiny: Callable[..., ModelFacts], tmp_path: Path):
    facts = tiny(family="gemma3")
    with GgufFile(tmp_path / "tiny.gguf") as file:
        assert set(all_tensors(facts)) == set(file.names())
        assert all(file.info(name).shape == shape for name, shape in layer_tensors(facts, 1).items())


def test_the_head_size_is_the_key_length_or_what_is_rotated_or_a_share_of_the_width(llama: Callable[..., ModelFacts]):
    assert llama().head_dim == 8
    assert llama(rope__dimension_count=8).rope.dims == 8
    assert llama(attention__key_length=8, attention__value_length=8).head_dim == 8


def test_the_file_is_called_after_its_name_or_itself(llama: Callable[..., ModelFacts]):
    assert llama().name == "m"
    assert llama(general__name="A model").name == "A model"


def test_keys_that_are_absent_have_the_formats_defaults(llama: Callable[..., ModelFacts]):
    assert llama(rope__freq_base=None).rope.theta == 10_000.0


def test_one_number_for_each_layer_is_taken_when_all_are_equal(llama: Callable[..., ModelFacts]):
    assert llama(attention__head_count_kv=[2, 2]).kv_heads == 2
    with pytest.raises(UnsupportedModel, match="head_count_kv' differs between layers"):
        llama(attention__head_count_kv=[2, 1])


@pytest.mark.parametrize(
    ("keys", "scale"),
    [
        ({"rope__scaling__factor": 4.0}, 4.0),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 8.0}, 8.0),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 8.0}, 1.0),
        ({"rope__scaling__factor": 0.0}, 1.0),
        ({"rope__scale_linear": 2.0}, 2.0),
    ],
)
def test_linear_scaling_divides_positions(llama: Callable[..., ModelFacts], keys: Values, scale: float):
    assert llama(**keys).rope.scale == scale


def test_a_window_over_all_layers_bounds_the_context(llama: Callable[..., ModelFacts]):
    facts = llama(attention__sliding_window=100)
    assert (facts.context, facts.window) == (100, 0)


def test_larger_gemmas_stretch_their_global_layers_alone(gemma: Callable[..., ModelFacts]):
    facts = gemma(rope__scaling__factor=8.0, rope__freq_base_swa=20_000.0)
    assert facts.rope == RopeFacts(500_000.0, 16, scale=8.0)
    assert facts.rope_local == RopeFacts(20_000.0, 16)


def test_a_gemma_without_a_window_is_all_global(gemma: Callable[..., ModelFacts]):
    facts = gemma(attention__sliding_window=None)
    assert (facts.window, facts.global_every, facts.rope_local) == (0, 0, None)


def test_every_sixth_layer_of_a_gemma_is_global_unless_the_file_says_otherwise(gemma: Callable[..., ModelFacts]):
    assert gemma().global_every == 6
    assert gemma(attention__sliding_window_pattern=2).global_every == 2
    assert gemma(4, attention__sliding_window_pattern=[True, False, True, False]).global_every == 2
    assert gemma(4, attention__sliding_window_pattern=[True] * 4).global_every == 5
    with pytest.raises(UnsupportedModel, match="even distances"):
        gemma(4, attention__sliding_window_pattern=[True, False, False, True])


def test_the_27b_gemma_scales_attention_by_its_width(gemma: Callable[..., ModelFacts]):
    assert gemma(61).attention_scale == 0.25
    assert gemma(62).attention_scale == 8**-0.5


def test_softcaps_are_taken_from_the_file(gemma: Callable[..., ModelFacts]):
    assert gemma(final_logit_softcapping=30.0).logit_softcap == 30.0


MALFORMED: dict[str, Values] = {
    "'llama.block_count' is missing": {"block_count": None},
    "'llama.block_count' is 0, outside 1": {"block_count": 0},
    "'llama.block_count' is 100000,": {"block_count": 100_000},
    "'llama.embedding_length' is -32,": {"embedding_length": -32},
    "'llama.attention.head_count' is 0,": {"attention__head_count": 0},
    "'llama.attention.head_count_kv' is 0,": {"attention__head_count_kv": 0},
    "4 attention heads cannot share 3": {"attention__head_count_kv": 3},
    "'llama.attention.layer_norm_rms_epsilon' is 0.0,": {"attention__layer_norm_rms_epsilon": 0.0},
    "'llama.attention.layer_norm_rms_epsilon' is nan,": {"attention__layer_norm_rms_epsilon": math.nan},
    "'llama.rope.freq_base' is inf,": {"rope__freq_base": math.inf},
    "'llama.rope.scaling.factor' is -1.0,": {"rope__scaling__factor": -1.0},
    "'llama.context_length' is 0,": {"context_length": 0},
    "'llama.feed_forward_length' is an integer in every sound file": {"feed_forward_length": "64"},
    "a head of 1 values has no pairs": {"attention__head_count": 32},
    "a head of 0 values has no pairs": {"attention__head_count": 64},
    "a head of 7 values has no pairs": {"attention__key_length": 7, "attention__value_length": 7},
    "'blk.0.attn_q.weight' has the shape (32, 32), not (64, 32)": {"attention__key_length": 16},
    "'token_embd.weight' has the shape (40, 32), not (40, 64)": {"embedding_length": 64},
    "'blk.2.attn_norm.weight' is missing": {"block_count": 3},
    "the tokenizer has 41 words, the embedding 'token_embd.weight' 40": {"tokenizer__ggml__tokens": ["x"] * 41},
}


@pytest.mark.parametrize("message", MALFORMED)
def test_facts_that_contradict_themselves_are_malformed(llama: Callable[..., ModelFacts], message: str):
    with pytest.raises(MalformedModel) as caught:
        llama(**MALFORMED[message])
    assert message in str(caught.value)
    assert "m.gguf" in str(caught.value)


UNSUPPORTED: dict[str, Values] = {
    "mixture of 8 experts": {"expert_count": 8},
    "'yarn' rotary scaling": {"rope__scaling__type": "yarn"},
    "4 of the 8 values of a head are rotated": {"rope__dimension_count": 4, "attention__key_length": 8},
    "keys have 8 values and values have 16": {"attention__value_length": 16},
    "tensor 'blk.0.attn_q.bias' is not part of a llama model": {"tensors": {"blk.0.attn_q.bias": np.ones(32, "f4")}},
    "is of type I32": {"tensors": {"blk.1.ffn_up.weight": np.ones((64, 32), np.int32)}},
    "tensor 'blk.2.attn_norm.weight' is not part of a llama model as Hyperlane runs it, nor are 1 others": {
        "tensors": {"blk.2.attn_norm.weight": np.ones(32, "f4"), "other": np.ones(1, "f4")}
    },
}


@pytest.mark.parametrize("message", UNSUPPORTED)
def test_variants_that_would_answer_wrongly_are_unsupported(llama: Callable[..., ModelFacts], message: str):
    with pytest.raises(UnsupportedModel) as caught:
        llama(**UNSUPPORTED[message])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (np.ones(5, np.float32), r"is F32 \(5,\), not F32 \(4,\)"),
        (np.ones(4, np.float16), r"is F16 \(4,\), not F32 \(4,\)"),
        (np.zeros(4, np.float32), "not positive"),
        (np.full(4, np.nan, np.float32), "not positive"),
    ],
)
def test_rotary_factors_are_checked(llama: Callable[..., ModelFacts], factors: np.ndarray, message: str):
    with pytest.raises(MalformedModel, match=message):
        llama(tensors={"rope_freqs.weight": factors})


def test_an_unknown_architecture_is_named_with_those_that_run(tmp_path: Path):
    path = write(tmp_path / "m.gguf", "mamba", {}, replace(SHAPES, family="llama"), {})
    with pytest.raises(UnsupportedModel, match="architecture is 'mamba'; Hyperlane runs gemma3, llama"):
        facts_of(path)


def test_a_file_without_an_architecture_is_malformed(tmp_path: Path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    with pytest.raises(MalformedModel, match=r"'general.architecture' is missing"):
        facts_of(path)


def test_an_embedding_that_is_no_matrix_is_malformed(llama: Callable[..., ModelFacts]):
    with pytest.raises(MalformedModel, match=r"the embedding 'token_embd.weight' is missing or no matrix"):
        llama(tensors={"token_embd.weight": np.ones(32, np.float32)})
