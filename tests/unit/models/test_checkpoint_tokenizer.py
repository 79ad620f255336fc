"""A tokenizer made of tokenizer.json: the same ids as the library's, special tokens never from a user's text."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tokenizers

from hyperlane.errors import MalformedModel, UnsupportedModel
from hyperlane.models.checkpoint_tokenizer import TokenizerTexts, read_checkpoint_tokenizer
from hyperlane.models.tokenizer import Tokenizer

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab", "▁▁"]


def token(identity: int, text: str, **more: object) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": identity, "content": text, **flags, **more}


SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
LLAMA2 = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [token(0, "<unk>"), token(1, "<s>"), token(2, "</s>")],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, SPACES]},
    "pre_tokenizer": None,
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    },
    "decoder": None,
    "model": {
        "type": "BPE",
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {piece: index for index, piece in enumerate(PIECES)},
        "merges": ["▁ a", "a b", "▁ ab", "▁ ▁"],
    },
}
METASPACE = LLAMA2 | {
    "normalizer": None,
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
}
SETTINGS = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>", "pad_token": None}
TEXTS = ["ab", " ab", "a  b", "é▁a", "<s>ab</s>", "a<s> ab", "</s> b<s>a"]


def texts(root: object = LLAMA2, settings: object = SETTINGS, **more: str | None) -> TokenizerTexts:
    made = TokenizerTexts(json.dumps(root), json.dumps(settings), "{}", "", None, "m")
    return replace(made, **more)


def read(*given: object, **more: str | None) -> Tokenizer:
    return Tokenizer(read_checkpoint_tokenizer(texts(*given, **more)))


@pytest.mark.parametrize("root", [LLAMA2, METASPACE], ids=["prepend", "metaspace"])
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_library(root, text):
    ours, library = read(root), tokenizers.Tokenizer.from_str(json.dumps(root))
    assert ours.encode(text, parse_special=True) == library.encode(text, add_special_tokens=False).ids


def test_special_tokens_in_a_users_text_stay_text():
    ids = read().encode("<s>a</s>")
    assert not {1, 2} & set(ids)
    assert read().decode(ids) == "<s>a</s>"


def test_the_space_that_a_text_begins_with_is_taken_away_again():
    tokenizer = read()
    assert tokenizer.encode("ab") == [PIECES.index("▁a"), PIECES.index("b")]
    assert tokenizer.decode(tokenizer.encode("ab")) == "ab"
    assert tokenizer.token_bytes(PIECES.index("▁ab")) == b" ab"
    assert tokenizer.decode(tokenizer.encode("é")) == "é"


def test_begin_and_end_are_what_the_texts_name():
    tokenizer = read()
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id) == (1, 2, 0, None)
    assert (tokenizer.add_bos, tokenizer.eos_ids) == (True, {2})
    assert tokenizer.encode("a", add_bos=True)[0] == 1
    assert not read(LLAMA2, SETTINGS | {"add_bos_token": False}).add_bos
    assert not read(LLAMA2 | {"post_processor": None}).add_bos
    assert read(generation=json.dumps({"eos_token_id": [2, 0, 99_999]})).eos_ids == {0, 2}
    assert read(LLAMA2, {}, model=json.dumps({"bos_token_id": 1, "eos_token_id": 2})).eos_ids == {2}


def test_runs_of_spaces_among_the_added_tokens_are_spaces():
    added = [*LLAMA2["added_tokens"], token(PIECES.index("▁▁"), "▁▁", special=False)]
    tokenizer = read(LLAMA2 | {"added_tokens": added})
    assert tokenizer.token_bytes(PIECES.index("▁▁")) == b"  "


def test_added_tokens_that_are_not_special_are_found_in_any_text():
    tokenizer = read(LLAMA2 | {"added_tokens": [*LLAMA2["added_tokens"], token(900, "[b]", special=False)]})
    assert 900 in tokenizer.encode("a[b]")
    assert tokenizer.token_bytes(900) == b"[b]"
    assert tokenizer.vocab_size == 901


def test_the_template_is_a_file_a_setting_or_the_default_of_several():
    assert read(LLAMA2, SETTINGS | {"chat_template": "x"}).chat_template == "x"
    assert read(LLAMA2, SETTINGS | {"chat_template": "x"}, template="y").chat_template == "y"
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert read(LLAMA2, SETTINGS | {"chat_template": several}).chat_template == "d"
    assert read().chat_template is None


@pytest.mark.parametrize(
    ("root", "words"),
    [
        (LLAMA2 | {"model": {"type": "Unigram", "vocab": []}}, "not BPE"),
        (LLAMA2 | {"model": LLAMA2["model"] | {"byte_fallback": False}}, "neither byte-level BPE nor"),
        (LLAMA2 | {"added_tokens": [token(1, "<s>", lstrip=True)]}, "'lstrip' of the token '<s>'"),
    ],
)
def test_kinds_that_would_give_other_ids_are_refused(root, words):
    with pytest.raises(UnsupportedModel, match=words):
        read(root)


def test_without_a_tokenizer_json_the_message_says_so():
    with pytest.raises(UnsupportedModel, match=r"no tokenizer\.json"):
        read(tokenizer="")


@pytest.mark.parametrize(
    "root",
    [
        LLAMA2 | {"added_tokens": [5]},
        LLAMA2 | {"added_tokens": [token(1, "")]},
        LLAMA2 | {"added_tokens": [token(1, "<other>")]},
        LLAMA2 | {"added_tokens": [token(7, "<s>")]},
        LLAMA2 | {"added_tokens": [token(1 << 40, "x")]},
        LLAMA2 | {"model": LLAMA2["model"] | {"vocab": {"a": -1}}},
        LLAMA2 | {"model": LLAMA2["model"] | {"vocab": {}}},
        LLAMA2 | {"model": LLAMA2["model"] | {"merges": ["x y"]}},
        LLAMA2 | {"model": LLAMA2["model"] | {"merges": [5]}},
        LLAMA2 | {"normalizer": {"type": "Nothing"}},
        LLAMA2
        | {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}},
    ],
)
def test_an_inconsistent_tokenizer_is_refused(root):
    with pytest.raises(MalformedModel):
        read(root)
