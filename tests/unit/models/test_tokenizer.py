"""`Tokenizer` and `Detokenizer` on vocabularies small enough to read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlane.errors import MalformedModel
from hyperlane.models.tokenizer import Detokenizer, Tokenizer
from hyperlane.models.tokenizer_bpe import ByteLevelBpe
from hyperlane.models.tokenizer_data import TokenizerData, TokenType
from hyperlane.models.tokenizer_pre import split_rule
from hyperlane.models.tokenizer_spm import ScoredPieces

BYTES = [f"<0x{value:02X}>" for value in range(256)]
PIECES = ["▁", "a", "b", "c", "ab", "bc", "▁a", "abc", "▁▁", "b▁c"]
SPECIALS = {
    "<s>": TokenType.CONTROL,
    "</s>": TokenType.CONTROL,
    "<unk>": TokenType.UNKNOWN,
    "<b>": TokenType.USER_DEFINED,
}


def pieces_data(**fields: object) -> TokenizerData:
    """A SentencePiece vocabulary: specials, bytes, pieces with falling scores."""
    tokens = [*SPECIALS, *BYTES, *PIECES]
    kinds = [*SPECIALS.values(), *[TokenType.BYTE] * 256, *[TokenType.NORMAL] * len(PIECES)]
    scores = [0.0] * 260 + [-float(rank) for rank in range(len(PIECES))]
    defaults = {"bos_id": 0, "eos_id": 1, "unk_id": 2, "ends": frozenset({1}), "add_bos": True}
    return TokenizerData("llama", tokens, kinds, scores=scores, **(defaults | fields))


def texts_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token_text(token) for token in ids]


def test_control_tokens_in_a_text_are_parsed_only_when_asked():
    tokenizer = Tokenizer(pieces_data())
    assert texts_of(tokenizer, tokenizer.encode("a<s>b", parse_special=True)) == ["a", "<s>", "b"]
    assert tokenizer.encode("a<s>b")[1:-1] == [tokenizer.encode(mark)[0] for mark in "<s>"]


def test_user_defined_tokens_are_always_parsed_and_have_text():
    tokenizer = Tokenizer(pieces_data())
    ids = tokenizer.encode("a<b>a")
    assert texts_of(tokenizer, ids) == ["a", "<b>", "a"]
    assert tokenizer.decode(ids) == "a<b>a"


def test_control_tokens_and_ids_beyond_the_vocabulary_have_no_text():
    tokenizer = Tokenizer(pieces_data())
    assert tokenizer.decode([0, 5000, 2, 1]) == ""
    assert tokenizer.token_bytes(-1) == b""


def test_bos_is_added_when_asked_and_when_the_model_wants_it():
    tokenizer = Tokenizer(pieces_data())
    assert tokenizer.encode("a", add_bos=True)[0] == 0
    assert tokenizer.encode("a")[0] != 0
    assert tokenizer.encode("", add_bos=True) == [0]
    assert tokenizer.encode("<s>a", add_bos=True, parse_special=True).count(0) == 1
    assert Tokenizer(pieces_data(add_bos=False)).encode("", add_bos=True) == []


def test_a_space_stands_before_every_text_when_the_vocabulary_wants_it():
    tokenizer = Tokenizer(pieces_data(add_space_prefix=True))
    assert texts_of(tokenizer, tokenizer.encode("ab<b>a")) == ["▁", "ab", "<b>", "▁a"]
    assert tokenizer.decode(tokenizer.encode("ab")) == "ab"
    assert tokenizer.encode("") == []
    continuation = Detokenizer(tokenizer)
    assert "".join(map(continuation.push, tokenizer.encode("ab"))) == " ab"


def test_fragments_join_to_one_text_between_tokens():
    tokenizer = Tokenizer(pieces_data())
    assert tokenizer.encode_fragments(["a", "b", "", "c", 0, "a", "b"]) == [
        *tokenizer.encode("abc"),
        0,
        *tokenizer.encode("ab"),
    ]


def test_half_surrogates_become_replacement_characters():
    tokenizer = Tokenizer(pieces_data())
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udc00")) == "a\ufffdb\ufffd"


@given(st.text(st.sampled_from("abc d<>s▁é🙂\n")))
def test_decoding_gives_the_text_back(text):
    tokenizer = Tokenizer(pieces_data())
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


# --- merging by score ------------------------------------------------------------------------------------------


def merged_naively(word: str, scores: dict[str, float]) -> list[str]:
    """The definition: join the best-scored adjacent pair, the leftmost of equals, until none can be joined."""
    pieces = list(word)
    while True:
        pairs = [
            (-scores[joined], at) for at in range(len(pieces) - 1) if (joined := pieces[at] + pieces[at + 1]) in scores
        ]
        if not pairs:
            return pieces
        _, at = min(pairs)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


@given(
    words=st.lists(st.text(st.sampled_from("ab▁"), min_size=2, max_size=5), max_size=12, unique=True),
    ranks=st.lists(st.integers(0, 3), min_size=12, max_size=12),
    text=st.text(st.sampled_from("ab "), min_size=1, max_size=90),
)
def test_merging_follows_the_definition_also_for_equal_scores_and_across_words(words, ranks, text):
    scores = {letter: -9.0 for letter in "ab▁"} | {word: -float(rank) for word, rank in zip(words, ranks, strict=False)}
    tokens = list(scores)
    model = ScoredPieces(tokens, [scores[token] for token in tokens], None)
    assert [tokens[token] for token in model.encode(text)] == merged_naively(text.replace(" ", "▁"), scores)


def test_characters_without_a_piece_become_bytes_or_the_unknown_token():
    tokenizer = Tokenizer(pieces_data())
    assert texts_of(tokenizer, tokenizer.encode("é")) == ["<0xC3>", "<0xA9>"]
    assert ScoredPieces(["a", "<unk>"], [0.0, 0.0], 1).encode("aé") == [0, 1, 1]
    assert ScoredPieces(["a"], [0.0], None).encode("aé") == [0]


# --- streaming -------------------------------------------------------------------------------------------------


def pushed(data: bytes) -> list[str]:
    tokenizer = Tokenizer(pieces_data())
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(len(SPECIALS) + value) for value in data), detokenizer.flush()]


def test_half_a_character_is_never_emitted():
    assert pushed("é🙂x".encode()) == ["", "é", "", "", "", "🙂", "x", ""]


def test_bytes_that_cannot_become_a_character_are_replaced_at_once():
    assert pushed(b"\xffa") == ["\ufffd", "a", ""]
    assert pushed(b"\xf0\x9fa") == ["", "", "\ufffda", ""]
    assert pushed(b"\xe0\x80") == ["", "\ufffd\ufffd", ""]


def test_a_character_that_was_not_finished_is_replaced_at_the_end():
    assert pushed(b"a\xf0\x9f\x99") == ["a", "", "", "", "\ufffd"]


@given(st.binary())
def test_streamed_text_is_the_text_of_all_bytes(data):
    assert "".join(pushed(data)) == data.decode(errors="replace")


def test_control_tokens_do_not_disturb_a_character():
    detokenizer = Detokenizer(Tokenizer(pieces_data()))
    first, second = (len(SPECIALS) + value for value in "é".encode())
    assert [detokenizer.push(token) for token in (first, 0, second)] == ["", "", "é"]


# --- byte-level BPE --------------------------------------------------------------------------------------------


def test_merges_that_do_not_fit_the_vocabulary_are_refused():
    for merges in (["a z"], ["ab"], ["a b"]):
        with pytest.raises(MalformedModel, match="merges"):
            ByteLevelBpe(["a", "b"], merges, split_rule("gpt-2"))


def test_every_byte_has_a_character_of_its_own_in_the_alphabet():
    model = ByteLevelBpe(["a"], [], split_rule("gpt-2"))
    assert model.text_bytes("Ġaé\u0100Ċ") == b" a\xe9\x00\n"
    assert model.text_bytes("日") == "日".encode()
