"""How a byte-level BPE cuts a text into words before merging: one rule for each known `tokenizer.ggml.pre`.

The patterns are those of the models' own tokenizer files. A wrong rule gives wrong tokens without any error, so an
unknown name is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hyperlane.errors import UnsupportedModel

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_DIGIT = r"\p{N}"
_UP_TO_THREE_DIGITS = r"\p{N}{1,3}"


def _modern(digits: str) -> str:
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"


def _by_case(digits: str, ending: str) -> str:
    return (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{ending}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{ending}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )


@dataclass(frozen=True, slots=True)
class SplitRule:
    """Patterns applied one after another, each to the pieces that the one before left; matches become pieces.

    `whole_words`: a piece that is a token as it stands is not merged from its characters.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False


_RULES: tuple[tuple[SplitRule, tuple[str, ...]], ...] = (
    (
        SplitRule((_GPT2,)),
        (
            *("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "mellum"),
            *("modern-bert", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "a.x-4.0"),
        ),
    ),
    (
        SplitRule((_DIGIT, _GPT2)),
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    ),
    (
        SplitRule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
        ("default",),
    ),
    (
        SplitRule((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
        ("falcon",),
    ),
    (
        SplitRule((_modern(_UP_TO_THREE_DIGITS),), whole_words=True),
        ("llama-bpe", "llama3", "llama-v3", "pixtral", "falcon3", "falcon-h1", "lfm2", "midm-2.0", "glm4"),
    ),
    (SplitRule((_modern(_UP_TO_THREE_DIGITS),)), ("dbrx", "smaug-bpe", "chatglm-bpe")),
    (
        SplitRule((_modern(_DIGIT),)),
        ("qwen2", "deepseek-r1-qwen", "megrez", "hunyuan", "stablelm2", "kormo", "grok-2", "solar-open"),
    ),
    (
        SplitRule(
            (
                rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
                rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
            )
        ),
        ("qwen35",),
    ),
    (SplitRule((_by_case(_DIGIT, ""),), whole_words=True), ("tekken",)),
    (
        SplitRule((_by_case(_UP_TO_THREE_DIGITS, _CONTRACTIONS + "?"),)),
        ("gpt-4o", "llama4", "kanana2", "minimax-m2"),
    ),
    (
        SplitRule(
            (
                _UP_TO_THREE_DIGITS,
                "[一-龥\u3040-ゟ゠-ヿ]+",
                r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
                rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
            )
        ),
        ("deepseek-v3", "hunyuan-dense"),
    ),
    (
        SplitRule((rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)),
        ("seed-coder",),
    ),
)

SPLIT_RULES: Mapping[str, SplitRule] = {name: rule for rule, names in _RULES for name in names}
"""Every known name and its rule."""


def split_rule(name: str) -> SplitRule:
    """The rule of a `tokenizer.ggml.pre`.

    Raises:
        UnsupportedModel: the name is not known.

    """
    rule = SPLIT_RULES.get(name)
    if rule is None:
        raise UnsupportedModel(
            f"the model's pre-tokenizer '{name}' (tokenizer.ggml.pre) is not known to Hyperlane, "
            f"and a wrong one would garble every prompt; known are: {', '.join(sorted(SPLIT_RULES))}"
        )
    return rule
