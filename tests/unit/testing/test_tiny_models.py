from pathlib import Path

import numpy as np
import pytest

from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.models.quant import dequantize
from hyperlane.models.random_blocks import random_matrix
from hyperlane.testing.tiny_models import TinyModel, write_tiny_model

K_TYPES = {"attn_q": "Q2_K", "attn_k": "Q3_K", "attn_v": "Q6_K", "ffn_up": "Q5_K"}


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K"])
def test_a_tiny_model_of_any_family_and_type_is_a_valid_one(tmp_path: Path, family: str, kind: str):
    wide = {"hidden": 256, "ffn": 256, "types": K_TYPES} if kind.endswith("K") else {}
    path = write_tiny_model(tmp_path / "tiny.gguf", family=family, type=kind, layers=2, **wide)
    with GgufFile(path) as file:
        facts = read_facts(file)
        assert (facts.family, facts.layers) == (family, 2)
        assert file.info("blk.1.ffn_gate.weight").type == kind
        for name in file.names():
            weights = dequantize(file.info(name), file.read(name))
            if weights.ndim == 2 and name.startswith("blk."):
                assert weights.std() == pytest.approx(weights.shape[1] ** -0.5, rel=0.2)


def test_the_same_arguments_give_the_same_bytes_and_another_seed_gives_others(tmp_path: Path):
    one = write_tiny_model(tmp_path / "one.gguf").read_bytes()
    assert write_tiny_model(tmp_path / "two.gguf", TinyModel()).read_bytes() == one
    assert write_tiny_model(tmp_path / "three.gguf", seed=1).read_bytes() != one


def test_a_longer_model_begins_with_the_weights_of_a_shorter_one(tmp_path: Path):
    with (
        GgufFile(write_tiny_model(tmp_path / "short.gguf", layers=1)) as short,
        GgufFile(write_tiny_model(tmp_path / "long.gguf", layers=3)) as long,
    ):
        name = "blk.0.attn_q.weight"
        assert np.array_equal(short.read(name), long.read(name))
        assert not np.array_equal(long.read(name), long.read("blk.2.attn_q.weight"))


def test_a_larger_vocabulary_is_padded_with_unused_words(tmp_path: Path):
    with GgufFile(write_tiny_model(tmp_path / "tiny.gguf", vocab=300)) as file:
        words, kinds = file.strings("tokenizer.ggml.tokens"), file.integers("tokenizer.ggml.token_type")
    assert len(words) == len(set(words)) == len(kinds) == 300
    assert (words[-1], kinds[-1]) == ("[unused28]", 5)


def test_columns_that_are_no_whole_blocks_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="100 columns are not a multiple of Q4_0's block of 32"):
        random_matrix("Q4_0", 2, 100, std=1.0, random=np.random.default_rng(0))


def test_a_misspelt_field_is_refused(tmp_path: Path):
    with pytest.raises(TypeError, match="layer"):
        write_tiny_model(tmp_path / "tiny.gguf", layer=2)
