"""What a file's metadata says of its tokenizer."""

from dataclasses import dataclass, field

import pytest

from hyperlane.errors import MalformedModel, UnsupportedModel
from hyperlane.models.tokenizer import Tokenizer
from hyperlane.models.tokenizer_data import TokenizerData, TokenType, read_tokenizer_data

CONTROL, USER_DEFINED, NORMAL = TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.NORMAL


@dataclass
class Values:
    """A file's metadata as a dictionary."""

    values: dict[str, object] = field(default_factory=dict)

    def get(self, key: str):
        return self.values.get(key.removeprefix("tokenizer.").removeprefix("ggml."))

    string = integer = boolean = strings = integers = floats = get


def read(**values: object) -> TokenizerData:
    defaults = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab"], "merges": ["a b"]}
    return read_tokenizer_data(Values(defaults | values))


def test_a_vocabulary_without_types_is_all_normal():
    assert read().types == [NORMAL] * 3
    assert Tokenizer(read()).encode("abb") == [2, 1]


def test_a_kind_of_tokenizer_that_is_not_run_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match=r"'rwkv'.*gpt2.*llama"):
        read(model="rwkv")


@pytest.mark.parametrize(
    "values",
    [{"model": None}, {"tokens": None}, {"tokens": []}, {"token_type": [1]}, {"model": "llama", "scores": [0.0]}],
)
def test_a_missing_or_inconsistent_vocabulary_is_malformed(values):
    with pytest.raises(MalformedModel):
        read(**values)


def test_special_ids_outside_the_vocabulary_count_as_none():
    data = read(bos_token_id=2**32 - 1, eos_token_id=-1, add_bos_token=True)
    assert (data.bos_id, data.eos_id, data.add_bos, data.ends) == (None, None, False, frozenset())


def test_bos_is_added_by_default_as_the_family_does_it():
    assert read(pre="llama-bpe", bos_token_id=0).add_bos
    assert not read(pre="qwen2", bos_token_id=0).add_bos
    assert not read(pre="llama-bpe", bos_token_id=0, add_bos_token=False).add_bos
    assert read(model="llama").add_bos


def test_sentencepiece_defaults_are_those_of_the_first_llama():
    data = read(model="llama", tokens=["<unk>", "<s>", "</s>"], token_type=[2, 3, 3])
    assert (data.unk_id, data.bos_id, data.eos_id, data.add_space_prefix) == (0, 1, 2, True)


def test_every_token_that_ends_a_turn_is_found():
    tokens = ["<|im_end|>", "<|endoftext|>", "x", "</s>", "<eot>"]
    data = read(tokens=tokens, token_type=[CONTROL, USER_DEFINED, NORMAL, CONTROL, NORMAL], eot_token_id=4)
    assert data.ends == {0, 1, 3, 4}


def test_a_closing_tag_that_is_no_control_token_ends_nothing_but_is_not_parsed_in_plain_text():
    data = read(tokens=["a", "</s>", "<|im_end|>"], token_type=[NORMAL, USER_DEFINED, NORMAL])
    assert data.ends == frozenset()
    assert data.types[1] == CONTROL


def test_a_token_that_ends_one_message_of_several_does_not_end_the_turn():
    tokens = ["<|return|>", "<|call|>", "<|end|>"]
    assert read(tokens=tokens, token_type=[CONTROL] * 3).ends == {0, 1}
    assert read(tokens=tokens[1:], token_type=[CONTROL] * 2).ends == {0, 1}


def test_fill_in_the_middle_tokens_are_never_parsed_in_plain_text():
    data = read(tokens=["<|fim_prefix|>", "<fim-suffix>", "<tool_call>"], token_type=[USER_DEFINED] * 3)
    assert data.types == [CONTROL, CONTROL, USER_DEFINED]
