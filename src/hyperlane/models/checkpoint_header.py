"""A checkpoint as its texts and the headers of its weights describe it, wherever the weights lie.

Trusts nothing: facts, tensor tables and their agreement are checked. Knows neither families nor tokenizers: modules of
their own read those texts.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hyperlane.core import ModelFacts
from hyperlane.errors import MalformedModel, UnknownModel
from hyperlane.models.checkpoint_facts import checkpoint_facts
from hyperlane.models.checkpoint_table import find_places
from hyperlane.models.checkpoint_tokenizer import TokenizerTexts
from hyperlane.models.ranges import TensorPlace
from hyperlane.models.safetensors_header import StoredTensor
from hyperlane.models.weights import TensorInfo

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
TEXTS = (CONFIG, GENERATION, TOKENIZER, TOKENIZER_CONFIG, TEMPLATE)
"""The files beside the weights that are read; CONFIG must be there, the others where their content is asked for."""

MAX_TEXT_BYTES = 256 << 20
"""The longest tokenizer.json have some 33 MB."""


def checkpoint_fingerprint(digests: Mapping[str, str]) -> str:
    """What identifies a checkpoint: hex SHA-256 over its files' names and hex SHA-256, those of `TEXTS` and weights."""
    root = hashlib.sha256(b"hyperlane checkpoint 1\n")
    for name in sorted(digests):
        root.update(f"{digests[name]} {name}\n".encode())
    return root.hexdigest()


class CheckpointHeader(ABC):
    """A `TensorSource` once a subclass says where the weights are. Tensors bear the names of our inventory."""

    def __init__(self, path: Path, texts: Mapping[str, str], headers: Mapping[str, Mapping[str, StoredTensor]]) -> None:
        """Read and check everything but the weights.

        Args:
            path: the folder's, for messages and as the model's name.
            texts: by file name the content of those of `TEXTS` that are there.
            headers: by file name the tables of the weights (`safetensors_header.read_header`).

        Raises:
            UnknownModel: there is no config.json.
            MalformedModel: a text or a table is inconsistent.
            UnsupportedModel: an architecture, a variant or a type that Hyperlane does not run.

        """
        if CONFIG not in texts:
            raise UnknownModel(f"{path} holds no {CONFIG}; give the folder of a checkpoint")
        self.path = path
        self.texts = texts
        self.facts: ModelFacts = checkpoint_facts(texts[CONFIG], f"{path.name}/{CONFIG}")
        self.files = tuple(headers)
        self._places = find_places(self.facts, headers, path.name)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """As `checkpoint_fingerprint` makes it."""

    @abstractmethod
    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """As `TensorSource.read`."""

    @property
    def tokenizer_texts(self) -> TokenizerTexts:
        """The texts that describe the tokenizer."""
        texts = self.texts
        return TokenizerTexts(
            tokenizer=texts.get(TOKENIZER, ""),
            settings=texts.get(TOKENIZER_CONFIG, ""),
            model=texts[CONFIG],
            generation=texts.get(GENERATION, ""),
            template=texts.get(TEMPLATE),
            label=self.path.name,
        )

    def names(self) -> Sequence[str]:
        """Every tensor, in the order of the files."""
        return tuple(self._places)

    def info(self, name: str) -> TensorInfo | None:
        """A tensor's shape, type and size; None when there is none of that name."""
        place = self._places.get(name)
        return None if place is None else place.info

    def required_place(self, name: str) -> TensorPlace:
        """Where a tensor's bytes lie; `file` counts those of `files`.

        Raises:
            MalformedModel: the checkpoint has no such tensor.

        """
        place = self._places.get(name)
        if place is None:
            raise MalformedModel(f"{self.path.name}: there is no tensor '{name}'")
        return place
