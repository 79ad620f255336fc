"""What a GGUF file says of its model, checked: metadata and tensor table in, `ModelFacts` out.

Each family's function holds its difference alone. Knows no weights, but Llama 3's few rotary factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from hyperlane.core import ModelFacts, RopeFacts
from hyperlane.errors import MalformedModel, UnsupportedModel
from hyperlane.models.gguf_header import GgufHeader
from hyperlane.models.inventory import EMBEDDING, OUTPUT, ROPE_FACTORS, all_tensors
from hyperlane.models.quant import is_supported

MAX_LAYERS = 1_024
MAX_WIDTH = 1 << 20
MAX_HEADS = 4_096
MAX_HEAD_DIM = 1_024
MAX_CONTEXT = 1 << 27
_GEMMA_27B_LAYERS = 62


def read_facts(file: GgufHeader) -> ModelFacts:
    """The facts of a model of family `llama` (Llama 2 and 3, SmolLM2, Mistral) or `gemma3`.

    Every number is checked for its range and against the shapes of the tensors, all of which must be there.
    A file of this machine is hashed for its fingerprint, once (see `GgufFile.fingerprint`).

    Raises:
        MalformedModel: a fact is missing, out of range, or contradicts the tensors.
        UnsupportedModel: another architecture, or a variant of these that Hyperlane does not run.

    """
    family = file.string("general.architecture")
    if family is None:
        raise MalformedModel(f"{file.path.name}: 'general.architecture' is missing: what model is this?")
    read = _FAMILIES.get(family)
    if read is None:
        known = ", ".join(sorted(_FAMILIES))
        raise UnsupportedModel(f"{file.path.name}: the architecture is '{family}'; Hyperlane runs {known}")
    keys = _Keys(file, family)
    facts = read(keys, _common(keys))
    _check_tensors(file, facts)
    return replace(facts, fingerprint=file.fingerprint)


@dataclass(frozen=True, slots=True)
class _Keys:
    """A file's keys of one family, each checked for its range."""

    file: GgufHeader
    family: str

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer within low … high; one number for each layer will do when all are equal."""
        name = f"{self.family}.{key}"
        value = self._of_all_layers(name) if self.file.is_array(name) else self.file.integer(name)
        return int(self._checked(name, value, low, high, default))

    def floating(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number within low … high."""
        name = f"{self.family}.{key}"
        return self._checked(name, self.file.floating(name), low, high, default)

    def string(self, key: str, default: str) -> str:
        """A string."""
        return self.file.string(f"{self.family}.{key}") or default

    def unsupported(self, what: str) -> UnsupportedModel:
        """The error that says what of this model Hyperlane does not run."""
        return UnsupportedModel(f"{self.file.path.name}: {what}, which Hyperlane does not run")

    def _checked(self, name: str, value: float | None, low: float, high: float, default: float | None) -> float:
        if value is None:
            if default is None:
                raise MalformedModel(f"{self.file.path.name}: '{name}' is missing")
            return default
        if not low <= value <= high:  # also refuses what is not a number
            raise MalformedModel(f"{self.file.path.name}: '{name}' is {value}, outside {low} to {high}")
        return value

    def _of_all_layers(self, name: str) -> int | None:
        values = set(self.file.integers(name) or ())
        if len(values) > 1:
            raise self.unsupported(f"'{name}' differs between layers")
        return values.pop() if values else None


def _common(keys: _Keys) -> ModelFacts:
    file = keys.file
    hidden = keys.integer("embedding_length", 1, MAX_WIDTH)
    heads = keys.integer("attention.head_count", 1, MAX_HEADS)
    kv_heads = keys.integer("attention.head_count_kv", 1, MAX_HEADS, default=heads)
    if heads % kv_heads:
        raise MalformedModel(f"{file.path.name}: {heads} attention heads cannot share {kv_heads} key-value heads")
    head_dim = _head_dim(keys, hidden, heads)
    return ModelFacts(
        name=file.string("general.name") or file.path.stem,
        family=keys.family,
        fingerprint="",
        layers=keys.integer("block_count", 1, MAX_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=keys.integer("feed_forward_length", 1, MAX_WIDTH),
        vocab=_vocab(file),
        context=keys.integer("context_length", 1, MAX_CONTEXT),
        rms_eps=keys.floating("attention.layer_norm_rms_epsilon", 1e-12, 0.1),
        rope=RopeFacts(keys.floating("rope.freq_base", 1.0, 1e12, default=10_000.0), head_dim, _rope_scale(keys)),
        tied_output=file.info(OUTPUT) is None,
        attention_scale=head_dim**-0.5,
        logit_softcap=keys.floating("final_logit_softcapping", 0.0, 1e6, default=0.0),
        attention_softcap=keys.floating("attn_logit_softcapping", 0.0, 1e6, default=0.0),
    )


def _head_dim(keys: _Keys, hidden: int, heads: int) -> int:
    rotated = keys.integer("rope.dimension_count", 2, MAX_HEAD_DIM, default=0)
    head_dim = keys.integer("attention.key_length", 2, MAX_HEAD_DIM, default=rotated or hidden // heads)
    if head_dim < 2 or head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise MalformedModel(f"{keys.file.path.name}: a head of {head_dim} values has no pairs to rotate")
    if rotated and rotated != head_dim:
        raise keys.unsupported(f"{rotated} of the {head_dim} values of a head are rotated")
    values = keys.integer("attention.value_length", 1, MAX_HEAD_DIM, default=head_dim)
    if values != head_dim:
        raise keys.unsupported(f"keys have {head_dim} values and values have {values}")
    return head_dim


def _vocab(file: GgufHeader) -> int:
    embedding = file.info(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise MalformedModel(f"{file.path.name}: the embedding '{EMBEDDING}' is missing or no matrix")
    words = file.count("tokenizer.ggml.tokens") or 0
    if words > embedding.shape[0]:
        raise MalformedModel(
            f"{file.path.name}: the tokenizer has {words} words, the embedding '{EMBEDDING}' {embedding.shape[0]} rows"
        )
    return embedding.shape[0]


def _rope_scale(keys: _Keys) -> float:
    """What positions are divided by."""
    kind = keys.string("rope.scaling.type", "linear")
    if kind not in {"none", "linear"}:
        raise keys.unsupported(f"its context is stretched by '{kind}' rotary scaling")
    older = keys.floating("rope.scale_linear", 0.0, 1e6, default=0.0)
    factor = keys.floating("rope.scaling.factor", 0.0, 1e6, default=older)
    return 1.0 if kind == "none" or factor == 0.0 else factor


def _llama(keys: _Keys, facts: ModelFacts) -> ModelFacts:
    experts = keys.integer("expert_count", 0, 65_536, default=0)
    if experts:
        raise keys.unsupported(f"it is a mixture of {experts} experts")
    # A window over all layers (early Mistral) makes no difference to a context that is not longer than the window.
    window = keys.integer("attention.sliding_window", 0, MAX_CONTEXT, default=0)
    return replace(
        facts,
        context=min(facts.context, window or facts.context),
        interleaved_heads=True,
        rope=replace(facts.rope, factors=_rope_factors(keys.file, facts.head_dim // 2)),
    )


def _rope_factors(file: GgufHeader, pairs: int) -> tuple[float, ...]:
    info = file.info(ROPE_FACTORS)
    if info is None:
        return ()
    if info.type != "F32" or info.shape != (pairs,):
        raise MalformedModel(f"{file.path.name}: '{ROPE_FACTORS}' is {info.type} {info.shape}, not F32 ({pairs},)")
    factors = file.read(ROPE_FACTORS).view("<f4")
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise MalformedModel(f"{file.path.name}: '{ROPE_FACTORS}' holds values that are not positive")
    return tuple(float(factor) for factor in factors)


def _gemma3(keys: _Keys, facts: ModelFacts) -> ModelFacts:
    """Gemma 3, as https://github.com/google/gemma_pytorch (config.py) and the files' converter define it.

    GGUF stores its norms' weights with the 1 already added. The 27B model alone scales attention by the width that
    a head would have if heads shared the hidden size.
    """
    window = keys.integer("attention.sliding_window", 0, MAX_CONTEXT, default=0)
    local = RopeFacts(keys.floating("rope.freq_base_swa", 1.0, 1e12, default=10_000.0), facts.head_dim)
    is_27b = facts.layers == _GEMMA_27B_LAYERS
    return replace(
        facts,
        window=window,
        global_every=_global_every(keys, facts.layers) if window else 0,
        rope_local=local if window else None,
        attention_scale=(facts.hidden // facts.heads) ** -0.5 if is_27b else facts.attention_scale,
        embedding_scale=math.sqrt(facts.hidden),
    )


def _global_every(keys: _Keys, layers: int) -> int:
    """How often a layer is global. A file has a number, or whether each layer is local, or nothing: every sixth."""
    name = f"{keys.family}.attention.sliding_window_pattern"
    if not keys.file.is_array(name):
        return keys.integer("attention.sliding_window_pattern", 1, MAX_LAYERS, default=6)
    local = keys.file.integers(name) or []
    every = local.index(0) + 1 if 0 in local else layers + 1
    if len(local) < layers or any(bool(local[i]) == ((i + 1) % every == 0) for i in range(layers)):
        raise keys.unsupported("its global layers do not come at even distances")
    return every


_FAMILIES: Mapping[str, Callable[[_Keys, ModelFacts], ModelFacts]] = {"llama": _llama, "gemma3": _gemma3}


def _check_tensors(file: GgufHeader, facts: ModelFacts) -> None:
    """Exactly the family's tensors, each in its shape and in a type that converts."""
    expected = all_tensors(facts)
    for name, shape in expected.items():
        info = file.info(name)
        if info is None:
            raise MalformedModel(f"{file.path.name}: the tensor '{name}' is missing")
        if info.shape != shape:
            raise MalformedModel(f"{file.path.name}: tensor '{name}' has the shape {info.shape}, not {shape}")
        if not is_supported(info.type):
            raise UnsupportedModel(f"{file.path.name}: tensor '{name}' is of type {info.type}, which nothing converts")
    unknown = [name for name in file.names() if name not in expected and name != ROPE_FACTORS]
    if unknown:
        # A bias or an expert that is left out would change every answer without a word.
        raise UnsupportedModel(
            f"{file.path.name}: tensor '{unknown[0]}' is not part of a {facts.family} model as Hyperlane runs it"
            + (f", nor are {len(unknown) - 1} others" if len(unknown) > 1 else "")
        )
