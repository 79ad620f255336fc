"""Opens a model of any format: its tensors, facts and tokenizer. The one place that tells formats apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hyperlane.core import ModelFacts, WeightForm
from hyperlane.errors import ConfigError
from hyperlane.models.checkpoint import Checkpoint
from hyperlane.models.checkpoint_header import CheckpointHeader
from hyperlane.models.checkpoint_tokenizer import read_checkpoint_tokenizer
from hyperlane.models.digests import DigestCache
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.models.gguf_header import GgufHeader
from hyperlane.models.quant import PLAIN_TYPES
from hyperlane.models.tokenizer import Tokenizer
from hyperlane.models.weights import TensorSource

ModelSource = GgufHeader | CheckpointHeader
"""A `TensorSource` with a `path` and a `fingerprint`, whether its weights lie here or elsewhere."""

ModelFiles = GgufFile | Checkpoint
"""A `ModelSource` of this machine, with digests of its tensors. Close it, or use `with`."""

CHECKPOINT_WEIGHTS = WeightForm.INT8
"""What the matrices of a checkpoint become where nothing is asked for."""


def open_model(path: Path, digests: DigestCache | None = None) -> ModelFiles:
    """Open a GGUF file, or the folder of a checkpoint.

    Raises:
        UnknownModel: there is no such model, or a file cannot be opened.
        MalformedModel: a file is truncated, hostile or inconsistent.
        UnsupportedModel: a model that Hyperlane does not run.

    """
    if path.is_dir():
        return Checkpoint(path, digests)
    return GgufFile(path, digests)


def facts_of(model: ModelSource, weights: WeightForm | None = None) -> ModelFacts:
    """The model's facts, with its fingerprint: the whole content is hashed once.

    Args:
        model: an open model.
        weights: what matrices that are stored in full are to become; None: those of a GGUF file stay, those of a
            checkpoint become `CHECKPOINT_WEIGHTS`.

    Raises:
        MalformedModel, UnsupportedModel: as the format's reader.
        ConfigError: `weights` is given, and the model's matrices are quantised already.

    """
    if weights is not None:
        _refuse_quantised(model, weights)
    if isinstance(model, GgufHeader):
        return replace(read_facts(model), weights=weights or WeightForm.FP16)
    return replace(
        model.facts, name=model.path.name, fingerprint=model.fingerprint, weights=weights or CHECKPOINT_WEIGHTS
    )


def tokenizer_of(model: ModelSource) -> Tokenizer:
    """The model's own tokenizer.

    Raises:
        UnsupportedModel: a tokenizer that Hyperlane does not run.
        MalformedModel: the vocabulary is missing or inconsistent.

    """
    if isinstance(model, GgufHeader):
        return Tokenizer.from_metadata(model)
    return Tokenizer(read_checkpoint_tokenizer(model.tokenizer_texts))


def _refuse_quantised(model: TensorSource, weights: WeightForm) -> None:
    """A second quantisation would lose quality without a word; whoever wants fewer bits takes another file."""
    for name in model.names():
        info = model.info(name)
        if info is not None and info.type not in PLAIN_TYPES:
            raise ConfigError(
                f"--weights {weights}: the weights of this file are quantised already ('{name}' is {info.type}), and "
                "quantising them again would lose quality: leave the option away, or take a file of another size"
            )
