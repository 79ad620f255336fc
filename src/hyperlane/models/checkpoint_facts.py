"""What a checkpoint's config.json says of its model, checked: text in, `ModelFacts` out. Knows no tensors.

Each family's function holds its difference alone. Keys and defaults are those of the `transformers` library, of its
versions 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from hyperlane.core import ModelFacts, RopeFacts
from hyperlane.errors import MalformedModel, UnsupportedModel
from hyperlane.models.checkpoint_config import ConfigKeys, parse_object
from hyperlane.models.facts import MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_WIDTH

MAX_VOCAB = 1 << 24
_HIGHEST_THETA = 1e12
_MISTRAL_WINDOW = 4096
"""What a Mistral config means that does not speak of it; null means none."""


def checkpoint_facts(config: str, label: str) -> ModelFacts:
    """The facts of a model of family `llama` (also Mistral and SmolLM2) or `gemma3` (text), without a fingerprint.

    Args:
        config: the text of config.json.
        label: what errors call that file.

    Raises:
        MalformedModel: a value is missing, out of range, or contradicts another.
        UnsupportedModel: another architecture, or a variant of these that Hyperlane does not run.

    """
    keys = ConfigKeys(parse_object(config, label), label)
    kind = keys.string("model_type", "")
    read = _KINDS.get(kind)
    if read is None:
        raise UnsupportedModel(
            f"{label}: the architecture is '{kind or 'not named'}'; of checkpoints Hyperlane runs {', '.join(_KINDS)}"
        )
    _refuse_variants(keys)
    return read(keys, _common(keys))


def _refuse_variants(keys: ConfigKeys) -> None:
    if keys.has("quantization_config"):
        raise keys.unsupported("its weights are quantised already ('quantization_config')")
    for key in ("attention_bias", "mlp_bias", "use_bidirectional_attention"):
        if keys.boolean(key, False):
            raise keys.unsupported(f"'{key}' is true")
    if keys.floating("partial_rotary_factor", 0.0, 1.0, default=1.0) != 1.0:
        raise keys.unsupported("only a part of each head's values is rotated ('partial_rotary_factor')")


def _common(keys: ConfigKeys) -> ModelFacts:
    hidden = keys.integer("hidden_size", 1, MAX_WIDTH)
    heads = keys.integer("num_attention_heads", 1, MAX_HEADS)
    kv_heads = keys.integer("num_key_value_heads", 1, MAX_HEADS, default=heads)
    if heads % kv_heads:
        raise MalformedModel(f"{keys.label}: {heads} attention heads cannot share {kv_heads} key-value heads")
    head_dim = keys.integer("head_dim", 2, MAX_HEAD_DIM, default=hidden // heads)
    if head_dim < 2 or head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise MalformedModel(f"{keys.label}: a head of {head_dim} values has no pairs to rotate")
    return ModelFacts(
        name="",
        family="llama",
        fingerprint="",
        layers=keys.integer("num_hidden_layers", 1, MAX_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=keys.integer("intermediate_size", 1, MAX_WIDTH),
        vocab=keys.integer("vocab_size", 1, MAX_VOCAB),
        context=keys.integer("max_position_embeddings", 1, MAX_CONTEXT),
        rms_eps=keys.floating("rms_norm_eps", 1e-12, 0.1, default=1e-6),
        rope=RopeFacts(10_000.0, head_dim),
        tied_output=keys.boolean("tie_word_embeddings", False),
        attention_scale=head_dim**-0.5,
    )


def _llama(keys: ConfigKeys, facts: ModelFacts) -> ModelFacts:
    activation = keys.string("hidden_act", "silu")
    if activation != "silu":
        raise keys.unsupported(f"its activation is '{activation}'")
    # A window over all layers (early Mistral) makes no difference to a context that is not longer than the window.
    unsaid = (
        _MISTRAL_WINDOW if keys.string("model_type", "") == "mistral" and "sliding_window" not in keys.values else 0
    )
    window = keys.integer("sliding_window", 0, MAX_CONTEXT, default=unsaid)
    scaling = keys.inner("rope_parameters") or keys.inner("rope_scaling")
    theta = (keys.inner("rope_parameters") or keys).floating("rope_theta", 1.0, _HIGHEST_THETA, default=10_000.0)
    return replace(
        facts,
        context=min(facts.context, window or facts.context),
        rope=_scaled(scaling, RopeFacts(theta, facts.head_dim)),
    )


def _gemma3(keys: ConfigKeys, facts: ModelFacts) -> ModelFacts:
    """Gemma 3's text model: norms of weight 1 + w, local layers with a rotary embedding of their own."""
    activation = keys.string("hidden_activation", "gelu_pytorch_tanh")
    if activation != "gelu_pytorch_tanh":
        raise keys.unsupported(f"its activation is '{activation}'")
    both = keys.inner("rope_parameters")
    wide = (both and both.inner("full_attention")) or keys
    near = both and both.inner("sliding_attention")
    theta = wide.floating("rope_theta", 1.0, _HIGHEST_THETA, default=1_000_000.0)
    local = (near or keys).floating(
        "rope_theta" if near else "rope_local_base_freq", 1.0, _HIGHEST_THETA, default=10_000.0
    )
    window = keys.integer("sliding_window", 0, MAX_CONTEXT, default=4096)
    scaling = wide if wide is not keys else keys.inner("rope_scaling")
    return replace(
        facts,
        family="gemma3",
        tied_output=keys.boolean("tie_word_embeddings", True),
        rope=_scaled(scaling, RopeFacts(theta, facts.head_dim)),
        window=window,
        global_every=_global_every(keys, facts.layers) if window else 0,
        rope_local=RopeFacts(local, facts.head_dim) if window else None,
        attention_scale=keys.floating("query_pre_attn_scalar", 1e-6, 1e9, default=256.0) ** -0.5,
        embedding_scale=math.sqrt(facts.hidden),
        logit_softcap=keys.floating("final_logit_softcapping", 0.0, 1e6, default=0.0),
        attention_softcap=keys.floating("attn_logit_softcapping", 0.0, 1e6, default=0.0),
        norm_bias=1.0,
    )


def _global_every(keys: ConfigKeys, layers: int) -> int:
    """How often a layer is global: a number, or the kind of each layer."""
    kinds = keys.strings("layer_types")
    if not kinds:
        pattern = "_sliding_window_pattern" if keys.has("_sliding_window_pattern") else "sliding_window_pattern"
        return keys.integer(pattern, 1, MAX_LAYERS, default=6)
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else layers + 1
    wanted = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)]
    if list(kinds) != wanted:
        raise keys.unsupported("its global layers do not come at even distances ('layer_types')")
    return every


def _scaled(scaling: ConfigKeys | None, rope: RopeFacts) -> RopeFacts:
    """The rotary embedding with its context stretched as the checkpoint says."""
    if scaling is None:
        return rope
    kind = scaling.string("rope_type", scaling.string("type", "default"))
    if kind == "default":
        return rope
    if kind == "linear":
        return replace(rope, scale=scaling.floating("factor", 1e-3, 1e6))
    if kind == "llama3":
        return replace(rope, factors=_llama3_factors(scaling, rope))
    raise scaling.unsupported(f"its context is stretched by '{kind}' rotary scaling")


def _llama3_factors(scaling: ConfigKeys, rope: RopeFacts) -> tuple[float, ...]:
    """Llama 3.1's divisors: short waves stay, long ones are stretched by `factor`, those between by something between.

    As https://github.com/meta-llama/llama-models defines it (`apply_scaling`).
    """
    factor = scaling.floating("factor", 1e-3, 1e6)
    low = scaling.floating("low_freq_factor", 1e-6, 1e6)
    high = scaling.floating("high_freq_factor", 1e-6, 1e6)
    trained = scaling.integer("original_max_position_embeddings", 1, MAX_CONTEXT)
    if high <= low:
        raise MalformedModel(f"{scaling.label}: 'high_freq_factor' {high} is not above 'low_freq_factor' {low}")

    def divisor(pair: int) -> float:
        turns = trained / (2 * math.pi * math.pow(rope.theta, 2 * pair / rope.dims))
        share = float(min(1.0, max(0.0, (turns - low) / (high - low))))
        return 1 / ((1 - share) / factor + share)

    return tuple(divisor(pair) for pair in range(rope.dims // 2))


_KINDS: Mapping[str, Callable[[ConfigKeys, ModelFacts], ModelFacts]] = {
    "llama": _llama,
    "mistral": _llama,
    "gemma3_text": _gemma3,
}
