"""Every rule by which a byte-level BPE cuts a text into words."""

import json
from pathlib import Path

import pytest

from hyperlane.errors import UnsupportedModel
from hyperlane.models.tokenizer import Tokenizer
from hyperlane.models.tokenizer_data import TokenizerData
from hyperlane.models.tokenizer_pre import SPLIT_RULES, split_rule

REFERENCE = json.loads((Path(__file__).parents[2] / "data" / "split_rule_reference.json").read_text(encoding="utf-8"))
COMBINING = next(text for text in REFERENCE["texts"] if "\u0301" in text)

APPROXIMATED_BY_THE_REFERENCE = {("tekken", COMBINING), ("gpt-4o", COMBINING)}
"""There the reference's pattern lacks the combining marks that the models' own pattern counts as letters."""


def tokenizer_with(pre: str) -> Tokenizer:
    tokens = REFERENCE["tokens"]
    return Tokenizer(TokenizerData("gpt2", tokens, [1] * len(tokens), pre=pre, merges=REFERENCE["merges"]))


@pytest.mark.parametrize("pre", REFERENCE["ids"])
def test_ids_equal_the_reference(pre):
    tokenizer = tokenizer_with(pre)
    for text, ids in zip(REFERENCE["texts"], REFERENCE["ids"][pre], strict=True):
        if (pre, text) not in APPROXIMATED_BY_THE_REFERENCE:
            assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == text


def test_the_reference_has_every_rule_and_tells_all_of_them_apart():
    assert {SPLIT_RULES[pre] for pre in REFERENCE["ids"]} == set(SPLIT_RULES.values())
    assert len({str(ids) for ids in REFERENCE["ids"].values()}) == len(REFERENCE["ids"])


def test_an_unknown_rule_is_refused_by_name_with_the_known_ones():
    with pytest.raises(UnsupportedModel, match=r"'klingon'.*llama-bpe.*qwen2.*smollm"):
        split_rule("klingon")
    with pytest.raises(UnsupportedModel, match="klingon"):
        tokenizer_with("klingon")
