"""Which stored tensor of a checkpoint is which tensor of our inventory, checked against the facts. Reads no file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from hyperlane.core import ModelFacts
from hyperlane.errors import MalformedModel, UnsupportedModel
from hyperlane.models.checkpoint_config import parse_object
from hyperlane.models.inventory import EMBEDDING, OUTPUT, OUTPUT_NORM, all_tensors
from hyperlane.models.ranges import TensorPlace
from hyperlane.models.safetensors_header import StoredTensor
from hyperlane.models.weights import TensorInfo

WEIGHT_TYPES = ("F32", "F16", "BF16")

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""What says which tensor is in which file, where there are several."""

MAX_SHARDS = 4_096

_OUTER = {EMBEDDING: "model.embed_tokens.weight", OUTPUT_NORM: "model.norm.weight", OUTPUT: "lm_head.weight"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FFN_NORM = {"llama": "post_attention_layernorm", "gemma3": "pre_feedforward_layernorm"}
_COMPUTED = ".rotary_emb.inv_freq"
"""End of the names of tensors that old checkpoints keep and that follow from config.json."""


def stored_name(name: str, family: str) -> str:
    """What a checkpoint of a family calls the tensor that our inventory calls `name`."""
    if name in _OUTER:
        return _OUTER[name]
    _, layer, middle, _ = name.split(".")
    return f"model.layers.{layer}.{_FFN_NORM[family] if middle == 'ffn_norm' else _LAYER[middle]}.weight"


def read_shards(index: str, label: str) -> tuple[str, ...]:
    """The files that an index names, in the order of their names.

    Raises:
        MalformedModel: it is no index, or names files outside its folder.

    """
    entries = parse_object(index, label).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise MalformedModel(f"{label}: 'weight_map' does not say where the tensors are")
    files = set(entries.values()) if all(isinstance(file, str) for file in entries.values()) else set()
    if not files or len(files) > MAX_SHARDS:
        raise MalformedModel(f"{label}: 'weight_map' must name 1 to {MAX_SHARDS} files")
    for file in files:
        if not file.endswith(".safetensors") or "/" in file or "\\" in file or file.startswith("."):
            raise MalformedModel(f"{label}: '{file[:128]}' is no file of this folder that ends in .safetensors")
    return tuple(sorted(files))


def find_places(
    facts: ModelFacts, headers: Mapping[str, Mapping[str, StoredTensor]], label: str
) -> Mapping[str, TensorPlace]:
    """By our names where each tensor of the model lies; files are numbered in the order of `headers`.

    Args:
        facts: the model's.
        headers: by file name its table.
        label: what errors call the checkpoint.

    Raises:
        MalformedModel: a tensor is missing, there twice, or has another shape than the facts say.
        UnsupportedModel: a tensor is of another type than F32, F16 and BF16, or not part of such a model.

    """
    finder = _Finder(facts, label, _by_name(headers, label))
    places = {name: finder.place(name, shape) for name, shape in all_tensors(facts).items()}
    finder.refuse_others({stored_name(name, facts.family) for name in places})
    order = sorted(places, key=lambda name: (places[name].file, places[name].offset))
    return {name: places[name] for name in order}


def _by_name(headers: Mapping[str, Mapping[str, StoredTensor]], label: str) -> dict[str, tuple[int, StoredTensor]]:
    found: dict[str, tuple[int, StoredTensor]] = {}
    for number, (file, tensors) in enumerate(headers.items()):
        for name, tensor in tensors.items():
            if name in found:
                raise MalformedModel(f"{label}: tensor '{name}' is in {file} and in another file")
            found[name] = number, tensor
    return found


class _Finder:
    """Looks tensors up by our names."""

    def __init__(self, facts: ModelFacts, label: str, stored: Mapping[str, tuple[int, StoredTensor]]) -> None:
        self._facts = facts
        self._label = label
        self._stored = stored

    def place(self, name: str, shape: tuple[int, ...]) -> TensorPlace:
        """Where the tensor of that name and shape lies."""
        theirs = stored_name(name, self._facts.family)
        found = self._stored.get(theirs)
        if found is None:
            self._fail(f"the tensor '{theirs}' is missing")
        number, tensor = found
        if tensor.shape != shape:
            self._fail(f"tensor '{theirs}' has the shape {tensor.shape}, config.json makes it {shape}")
        if tensor.dtype not in WEIGHT_TYPES:
            raise UnsupportedModel(
                f"{self._label}: tensor '{theirs}' is of type {tensor.dtype}; weights may be {', '.join(WEIGHT_TYPES)}"
            )
        return TensorPlace(TensorInfo(name, shape, tensor.dtype, tensor.nbytes), number, tensor.offset)

    def refuse_others(self, known: set[str]) -> None:
        """A bias or an expert that is left out would change every answer without a word."""
        harmless = {_OUTER[OUTPUT]} if self._facts.tied_output else set()
        others = [name for name in self._stored if name not in known | harmless and not name.endswith(_COMPUTED)]
        if others:
            raise UnsupportedModel(
                f"{self._label}: tensor '{others[0]}' is not part of a {self._facts.family} model as Hyperlane runs it"
                + (f", nor are {len(others) - 1} others" if len(others) > 1 else "")
            )

    def _fail(self, what: str) -> NoReturn:
        raise MalformedModel(f"{self._label}: {what}")
