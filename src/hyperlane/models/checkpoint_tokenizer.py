"""What the texts of a checkpoint say of its tokenizer, checked: tokenizer.json and settings in, `TokenizerData` out.

The vocabulary is left to the `tokenizers` library; which tokens are special, begin and end a text is read here, since
what a user wrote must never be taken for one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hyperlane.errors import MalformedModel, UnsupportedModel
from hyperlane.models.checkpoint_config import ConfigKeys, Json, parse_object
from hyperlane.models.tokenizer_data import (
    BYTE_LEVEL_BPE,
    SENTENCEPIECE,
    TokenizerData,
    TokenType,
    corrected_types,
    ends_of,
)

MAX_TOKENS = 1 << 22
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_SPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class TokenizerTexts:
    """The files as they are; an empty text for one that is not there.

    `tokenizer`: tokenizer.json, `settings`: tokenizer_config.json, `model`: config.json, `generation`:
    generation_config.json, `template`: chat_template.jinja. `label`: what errors call the checkpoint.
    """

    tokenizer: str
    settings: str
    model: str
    generation: str
    template: str | None
    label: str


def read_checkpoint_tokenizer(texts: TokenizerTexts) -> TokenizerData:
    """The tokenizer of a checkpoint.

    Raises:
        UnsupportedModel: there is no tokenizer.json, or it is of a kind that Hyperlane does not run.
        MalformedModel: it is inconsistent.

    """
    if not texts.tokenizer:
        raise UnsupportedModel(f"{texts.label}: there is no tokenizer.json, and no other kind of tokenizer is read")
    label = f"{texts.label}/tokenizer.json"
    root = parse_object(texts.tokenizer, label)
    words = _Words(root, label)
    settings, model, generation = (
        ConfigKeys(parse_object(text or "{}", f"{texts.label}/{name}"), f"{texts.label}/{name}")
        for text, name in (
            (texts.settings, "tokenizer_config.json"),
            (texts.model, "config.json"),
            (texts.generation, "generation_config.json"),
        )
    )
    bos, eos = (_special(words, settings, model, kind) for kind in ("bos", "eos"))
    plain = {**root, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None, "decoder": None}
    inside = _inside(plain)
    return TokenizerData(
        model=words.kind,
        tokens=words.tokens,
        types=corrected_types(words.tokens, words.types),
        bos_id=bos,
        eos_id=eos,
        unk_id=_special(words, settings, model, "unk"),
        pad_id=_special(words, settings, model, "pad"),
        ends=_ends(words, eos, generation.integers("eos_token_id"), model.integers("eos_token_id")),
        add_bos=bos is not None and settings.boolean("add_bos_token", _begins_with(root, words.tokens[bos])),
        add_space_prefix=_adds_space(root),
        chat_template=_template(texts, settings),
        library=json.dumps(plain),
        library_inside=json.dumps(inside) if inside != plain else "",
    )


class _Words:
    """Every token's text and type by id. `kind`: of vocabulary, as in `TokenizerData.model`."""

    def __init__(self, root: Json, label: str) -> None:
        self._label = label
        model = root.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
            raise UnsupportedModel(f"{label}: the vocabulary is not BPE, which is the only kind that Hyperlane runs")
        self.kind = self._kind(root, model)
        added = [_Added.read(entry, label) for entry in _list(root.get("added_tokens"))]
        ids = self._ids(model["vocab"], added)
        self.tokens = [""] * (max(ids.values(), default=-1) + 1)
        self.types = [int(TokenType.UNUSED)] * len(self.tokens)
        for text, token in ids.items():
            is_byte = self.kind == SENTENCEPIECE and _BYTE.fullmatch(text)
            self.tokens[token], self.types[token] = text, TokenType.BYTE if is_byte else TokenType.NORMAL
        for one in added:
            self.types[one.id] = one.type
        self.by_text = ids

    def _kind(self, root: Json, model: Json) -> str:
        if any(part.get("type") == "ByteLevel" for part in _parts(root.get("pre_tokenizer"))):
            return BYTE_LEVEL_BPE
        if model.get("byte_fallback") is True:
            return SENTENCEPIECE
        raise UnsupportedModel(
            f"{self._label}: the vocabulary is neither byte-level BPE nor BPE that falls back to bytes"
        )

    def _ids(self, vocabulary: Mapping[str, object], added: Sequence[_Added]) -> dict[str, int]:
        ids: dict[str, int] = {}
        for text, token in (*vocabulary.items(), *((one.text, one.id) for one in added)):
            if type(token) is not int or not 0 <= token < MAX_TOKENS:
                raise MalformedModel(f"{self._label}: the token '{text[:64]}' has no id below {MAX_TOKENS}")
            if ids.setdefault(text, token) != token:
                raise MalformedModel(f"{self._label}: the token '{text[:64]}' has the ids {ids[text]} and {token}")
        if not ids or len(set(ids.values())) != len(ids):
            raise MalformedModel(f"{self._label}: the vocabulary is empty, or two tokens have the same id")
        return ids


@dataclass(frozen=True, slots=True)
class _Added:
    """A token that is found in a text as it is written."""

    id: int
    text: str
    type: int

    @classmethod
    def read(cls, entry: object, label: str) -> _Added:
        """One of `added_tokens`."""
        if not isinstance(entry, dict):
            raise MalformedModel(f"{label}: 'added_tokens' holds something else than objects")
        keys = ConfigKeys(entry, f"{label}: added_tokens")
        text = keys.string("content", "")
        if not text:
            raise MalformedModel(f"{label}: an added token has no content")
        for key in ("lstrip", "rstrip", "single_word"):
            if keys.boolean(key, False):
                raise keys.unsupported(f"'{key}' of the token '{text[:64]}' is true")
        kind = TokenType.CONTROL if keys.boolean("special", False) else TokenType.USER_DEFINED
        if kind is TokenType.USER_DEFINED and _SPACE in text:
            kind = TokenType.NORMAL  # runs of spaces, which the vocabulary's own merges find
        return cls(keys.integer("id", 0, MAX_TOKENS - 1), text, kind)


def _parts(step: object) -> Iterator[Json]:
    """A step of tokenizer.json, or the steps that it is a sequence of."""
    if not isinstance(step, dict):
        return
    yield step
    for key in ("normalizers", "pretokenizers", "processors", "decoders"):
        for inner in _list(step.get(key)):
            yield from _parts(inner)


def _list(found: object) -> Sequence[object]:
    return found if isinstance(found, list) else ()


def _special(words: _Words, settings: ConfigKeys, model: ConfigKeys, kind: str) -> int | None:
    """The id of the token that tokenizer_config.json names by its text, or config.json by its id."""
    found = settings.values.get(f"{kind}_token")
    text = found.get("content") if isinstance(found, dict) else found
    if isinstance(text, str) and text in words.by_text:
        return words.by_text[text]
    named = model.integers(f"{kind}_token_id")
    return named[0] if named and 0 <= named[0] < len(words.tokens) else None


def _ends(words: _Words, eos: int | None, *named: Sequence[int]) -> frozenset[int]:
    known = [token for ids in named for token in ids if 0 <= token < len(words.tokens)]
    return ends_of(words.tokens, words.types, (eos, *known))


def _begins_with(root: Json, bos: str) -> bool:
    """Whether the post-processor puts BOS before a text."""
    for part in _parts(root.get("post_processor")):
        first = next(iter(_list(part.get("single"))), None)
        if part.get("type") == "TemplateProcessing" and isinstance(first, dict):
            special = first.get("SpecialToken")
            return isinstance(special, dict) and special.get("id") == bos
    return False


def _adds_space(root: Json) -> bool:
    """Whether a text begins as if a space stood before it."""
    if any(part.get("type") == "Prepend" for part in _parts(root.get("normalizer"))):
        return True
    return any(_prepends(part) for part in _parts(root.get("pre_tokenizer")))


def _prepends(part: Json) -> bool:
    if part.get("type") != "Metaspace":
        return False
    return part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never") != "never"


def _inside(step: Json) -> Json:
    """The description for a text that does not begin its prompt: a space that only the first text gets is left out."""
    if step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first":
        return {**step, "prepend_scheme": "never"}
    changed = dict(step)
    for key in ("pre_tokenizer", "pretokenizers"):
        inner = step.get(key)
        if isinstance(inner, dict):
            changed[key] = _inside(inner)
        elif isinstance(inner, list):
            changed[key] = [_inside(one) if isinstance(one, dict) else one for one in inner]
    return changed


def _template(texts: TokenizerTexts, settings: ConfigKeys) -> str | None:
    """The chat template: a file of its own, a setting, or the one called `default` of several."""
    if texts.template is not None:
        return texts.template
    found = settings.values.get("chat_template")
    named = {one.get("name"): one.get("template") for one in _list(found) if isinstance(one, dict)}
    chosen = named.get("default") if isinstance(found, list) else found
    if chosen is not None and not isinstance(chosen, str):
        raise MalformedModel(f"{settings.label}: 'chat_template' is no text")
    return chosen
