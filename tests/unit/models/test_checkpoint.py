"""A checkpoint's folder: facts of config.json, tensors by our names, what is refused, what identifies it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from hyperlane.core import ModelFacts, WeightForm
from hyperlane.errors import ConfigError, MalformedModel, UnknownModel, UnsupportedModel
from hyperlane.models.checkpoint import Checkpoint
from hyperlane.models.checkpoint_facts import checkpoint_facts
from hyperlane.models.digests import DigestCache
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.models.mapping import MappedFile
from hyperlane.models.quant import dequantize
from hyperlane.models.quant_layout import unpermute_rows
from hyperlane.models.resolve import Library, name_of, resolve
from hyperlane.models.source import facts_of, open_model
from hyperlane.testing.checkpoints import write_checkpoint
from hyperlane.testing.tiny_models import write_tiny_model

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 300,
    "max_position_embeddings": 131072,
}
GEMMA = LLAMA | {"model_type": "gemma3_text", "head_dim": 32, "query_pre_attn_scalar": 256, "sliding_window": 512}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def facts(config: dict[str, object], **more: object) -> ModelFacts:
    return checkpoint_facts(json.dumps(config | more), "config.json")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny.gguf", type="F16", embedding_type="F16", layers=2)


@pytest.fixture
def folder(gguf: Path, tmp_path: Path) -> Path:
    return write_checkpoint(gguf, tmp_path / "tiny")


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_facts_equal_those_of_the_file_that_it_was_made_of(tmp_path, family):
    path = write_tiny_model(tmp_path / "tiny.gguf", family=family, type="F16", head_dim=32, window=16)
    with GgufFile(path) as file, Checkpoint(write_checkpoint(path, tmp_path / "c")) as checkpoint:
        wanted, found = read_facts(file), facts_of(checkpoint)
    other = {"name", "fingerprint", "interleaved_heads", "norm_bias", "weights"}
    for field in fields(ModelFacts):
        if field.name not in other:
            assert getattr(found, field.name) == pytest.approx(getattr(wanted, field.name)), field.name
    assert found.name == "c"
    assert (found.interleaved_heads, found.norm_bias) == (False, 1.0 if family == "gemma3" else 0.0)


def test_the_library_reads_the_files_that_we_write_for_tests(folder):
    names = set(safetensors.numpy.load_file(folder / "model.safetensors"))
    assert {"model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"} <= names


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_tensors_bear_our_names_and_hold_the_weights(gguf, tmp_path, dtype, shards):
    with GgufFile(gguf) as file, Checkpoint(write_checkpoint(gguf, tmp_path / "c", dtype=dtype, shards=shards)) as ours:
        assert sorted(ours.names()) == sorted(file.names())
        for name in file.names():
            info, theirs = ours.info(name), file.info(name)
            assert (info.type, info.shape, info.nbytes) == (dtype, theirs.shape, len(ours.read(name)))
            wanted = dequantize(theirs, file.read(name))
            if ".attn_q." in name or ".attn_k." in name:
                wanted = unpermute_rows(wanted, 4 if ".attn_q." in name else 2)
            np.testing.assert_allclose(dequantize(info, ours.read(name)), wanted, rtol=2**-8, atol=1e-7)


def test_a_place_is_where_the_bytes_lie(folder):
    with Checkpoint(folder) as checkpoint:
        place = checkpoint.place("blk.1.ffn_down.weight")
        raw = (folder / checkpoint.files[place.file]).read_bytes()[place.offset :][: place.info.nbytes]
        assert raw == checkpoint.read("blk.1.ffn_down.weight").tobytes()
        assert place.digest == checkpoint.tensor_digest("blk.1.ffn_down.weight")
        assert checkpoint.place("nothing") is None


def test_what_was_read_stays_valid_after_the_checkpoint_is_closed(folder):
    with Checkpoint(folder) as checkpoint:
        raw = checkpoint.read("token_embd.weight")
    assert raw.any()


def test_llama3_scaling_stretches_long_waves_by_its_factor_and_leaves_short_ones():
    rope = facts(LLAMA | {"head_dim": 128, "rope_theta": 500000.0}, rope_scaling=LLAMA3).rope
    assert (rope.theta, rope.scale, len(rope.factors)) == (500000.0, 1.0, 64)
    assert rope.factors[0] == 1.0
    assert rope.factors[-1] == 8.0
    assert list(rope.factors) == sorted(rope.factors)
    # The published formula, at one pair between the two borders.
    pair = next(i for i, factor in enumerate(rope.factors) if 1.0 < factor < 8.0)
    frequency = 500000.0 ** (-2 * pair / 128)
    smooth = (8192 / (2 * math.pi / frequency) - 1.0) / (4.0 - 1.0)
    assert frequency / rope.factors[pair] == pytest.approx((1 - smooth) * frequency / 8.0 + smooth * frequency)


def test_keys_of_the_newer_transformers_mean_the_same():
    old = facts(LLAMA, rope_theta=500000.0, rope_scaling=LLAMA3)
    assert facts(LLAMA, rope_parameters=LLAMA3 | {"rope_theta": 500000.0}) == old
    both = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    new = facts(GEMMA, rope_parameters=both, layer_types=["sliding_attention", "full_attention"])
    assert new == facts(
        GEMMA,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling={"type": "linear", "factor": 8.0},
        sliding_window_pattern=2,
    )


def test_a_window_over_all_layers_limits_the_context():
    assert facts(LLAMA, model_type="mistral", sliding_window=4096).context == 4096
    assert facts(LLAMA, model_type="mistral", sliding_window=None).context == 131072
    assert facts(LLAMA, model_type="mistral").context == 4096


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "qwen2"}, "'qwen2'; of checkpoints Hyperlane runs llama, mistral, gemma3_text"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised already"),
        ({"attention_bias": True}, "'attention_bias' is true"),
        ({"mlp_bias": True}, "'mlp_bias' is true"),
        ({"hidden_act": "gelu"}, "activation is 'gelu'"),
        ({"partial_rotary_factor": 0.5}, "a part of each head"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' rotary scaling"),
    ],
)
def test_variants_that_would_give_other_answers_are_refused(changes, words):
    with pytest.raises(UnsupportedModel, match=words):
        facts(LLAMA, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": "64"}, "'hidden_size' is no integer"),
        ({"num_hidden_layers": 1 << 40}, "outside 1 to 1024"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        ({"head_dim": 15}, "no pairs to rotate"),
        ({"tie_word_embeddings": 1}, "neither true nor false"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' is nan"),
        ({"rope_scaling": 3}, "'rope_scaling' is no object"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "not above 'low_freq_factor'"),
    ],
)
def test_values_out_of_their_range_are_refused(changes, words):
    with pytest.raises(MalformedModel, match=words):
        facts(LLAMA, **changes)


# --- folders ---------------------------------------------------------------------------------------------------


def edit(file: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_tensor_of_another_shape_than_the_config_says_is_refused(folder):
    edit(folder / "config.json", lambda config: config.update(intermediate_size=256))
    with pytest.raises(MalformedModel, match=r"'model.layers.0.mlp.gate_proj.weight' has the shape \(128, 64\)"):
        Checkpoint(folder)


def test_a_missing_tensor_is_named_as_the_checkpoint_names_it(folder):
    edit(folder / "config.json", lambda config: config.update(num_hidden_layers=3))
    with pytest.raises(MalformedModel, match=r"'model.layers.2.input_layernorm.weight' is missing"):
        Checkpoint(folder)


def test_a_tensor_that_would_be_left_out_is_refused(folder):
    edit(folder / "config.json", lambda config: config.update(num_hidden_layers=1))
    with pytest.raises(UnsupportedModel, match="not part of a llama model as Hyperlane runs it, nor are 8 others"):
        Checkpoint(folder)


@pytest.mark.parametrize("cut", [4, 200, -1])
def test_a_truncated_file_is_refused(folder, cut):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(MalformedModel, match="truncated"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "named", ["../secret.safetensors", "/etc/x.safetensors", "a\\b.safetensors", ".x.safetensors", "x"]
)
def test_an_index_that_leads_out_of_its_folder_is_refused(folder, named):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": named}}))
    with pytest.raises(MalformedModel, match="no file of this folder"):
        Checkpoint(folder)


def test_a_missing_part_is_named(gguf, tmp_path):
    folder = write_checkpoint(gguf, tmp_path / "c", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UnknownModel, match="model-00002-of-00002"):
        Checkpoint(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 50_000, "\0"])
def test_a_config_that_is_none_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(MalformedModel, match=r"config\.json"):
        Checkpoint(folder)


def test_a_folder_is_a_model_by_its_path(folder, tmp_path):
    path = resolve(str(folder), Library(tmp_path / "models"))
    assert (path, name_of(str(folder), path)) == (folder, "tiny")
    with open_model(path) as model:
        assert facts_of(model).layers == 2


def test_the_fingerprint_is_of_the_content_and_is_computed_once(folder, tmp_path, monkeypatch):
    cache = DigestCache(tmp_path / "digests")
    monkeypatch.setattr("hyperlane.models.digests._SETTLED_NS", -1)
    with Checkpoint(folder, cache) as one:
        fingerprint = one.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(MappedFile, "_hash", None)
        patch.setattr("hyperlane.models.mapping.hashlib", None)
        with Checkpoint(folder, cache) as two:
            assert two.fingerprint == fingerprint
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    with Checkpoint(folder) as other:
        assert other.fingerprint != fingerprint


# --- --weights -------------------------------------------------------------------------------------------------


def test_weights_are_int8_for_a_checkpoint_and_as_they_are_for_a_file(folder, gguf):
    with open_model(folder) as checkpoint, open_model(gguf) as file:
        assert facts_of(checkpoint).weights is WeightForm.INT8
        assert facts_of(file).weights is WeightForm.FP16
        assert facts_of(file, WeightForm.INT4).weights is WeightForm.INT4


def test_weights_that_are_quantised_already_are_not_quantised_again(tmp_path):
    path = write_tiny_model(tmp_path / "q.gguf", type="Q4_0", embedding_type="F16")
    with (
        open_model(path) as file,
        pytest.raises(ConfigError, match=r"quantised already \('blk.0.attn_q.weight' is Q4_0\)"),
    ):
        facts_of(file, WeightForm.INT8)
