"""What an exported stage says of itself: its inputs and outputs for programs, and how to run it for people."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import onnx

from hyperlane.core import StageSpec
from hyperlane.graph import names
from hyperlane.stage.arena import positions
from hyperlane.stage.providers import provider_of

MODEL, WEIGHTS, MANIFEST, README = "model.onnx", "weights.bin", "stage.json", "README.md"

FORMAT = 1

_MEANINGS = {
    names.TOKENS: "token ids",
    names.HIDDEN_IN: "the output hidden_out of the stage before",
    names.HIDDEN_OUT: "the input hidden_in of the stage behind",
    names.LENGTHS: "for each row the position of its last token, counted from 0",
    names.TOTAL: "the largest of lengths, plus 1",
    names.WANTED: "which tokens to project to the vocabulary, counted over batch and tokens",
    names.INVERSE_TEMPERATURE: "1 / temperature of each wanted token",
    names.TOP_K: "how many of the largest logits to return",
    names.PART_K: "how many of them to look for in each part of the vocabulary: at least top_k, or a part's size",
    names.EXTRA: "indices into the flattened logits, to return besides",
    names.LOGITS: "the logits of the wanted tokens",
    names.TOP_LOGITS: "the largest logits, descending",
    names.TOP_IDS: "their token ids",
    names.LSE: "log-sum-exp of the logits",
    names.LSE_T: "log-sum-exp of the logits divided by the temperature",
    names.EXTRA_LOGITS: "the logits at extra",
}
_PAST = "a layer's keys or values so far; zeros for a new sequence"
_PRESENT = "the same after the run: the next run's past. May be bound to the same memory as past"


@dataclass(frozen=True, slots=True)
class ValueNote:
    """One input or output. `shape`: numbers, and names of sizes that the caller chooses."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str


@dataclass(frozen=True, slots=True)
class StageNotes:
    """What stage.json holds. `last_layer` is exclusive; `context`: the tokens of a sequence, prompt and answer."""

    format: int
    model: str
    family: str
    fingerprint: str
    first_layer: int
    last_layer: int
    layers_of_model: int
    embeds: bool
    projects: bool
    context: int
    weights: str
    provider: str
    inputs: tuple[ValueNote, ...]
    outputs: tuple[ValueNote, ...]

    def json(self) -> bytes:
        """As a file."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()


def describe(spec: StageSpec, model: bytes, device: str) -> StageNotes:
    """The notes of a serialised graph of a stage."""
    graph = onnx.load_model_from_string(model).graph
    facts = spec.model
    return StageNotes(
        format=FORMAT,
        model=facts.name,
        family=facts.family,
        fingerprint=facts.fingerprint,
        first_layer=spec.layers.first,
        last_layer=spec.layers.last,
        layers_of_model=facts.layers,
        embeds=spec.is_first,
        projects=spec.is_last,
        context=positions(spec) - 1,
        weights=facts.weights.value,
        provider=provider_of(device).ort_name,
        inputs=tuple(_notes(graph.input)),
        outputs=tuple(_notes(graph.output)),
    )


def _notes(values: Iterable[onnx.ValueInfoProto]) -> Iterable[ValueNote]:
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_param or int(dim.dim_value) for dim in tensor.shape.dim)
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        yield ValueNote(value.name, dtype, shape, _meaning(value.name))


def _meaning(name: str) -> str:
    if name.startswith("past."):
        return _PAST
    return _PRESENT if name.startswith("present.") else _MEANINGS[name]


def readme(notes: StageNotes) -> bytes:
    """How to run the stage, with a program that does."""
    tables = (_table(values) for values in (notes.inputs, notes.outputs))
    return _README.format(notes=notes, last=notes.last_layer - 1, tables="\n".join(tables)).encode()


def _table(values: Iterable[ValueNote]) -> str:
    """The values but each layer's own, of which the first stand for all."""
    seen: set[str] = set()
    lines = ["| name | type | shape | meaning |", "|---|---|---|---|"]
    for value in values:
        kind = value.name.partition(".")[0] + value.name.rpartition(".")[2]
        if kind not in seen:
            seen.add(kind)
            shape = ", ".join(map(str, value.shape))
            lines.append(f"| `{value.name}` | {value.dtype} | [{shape}] | {value.meaning} |")
    return "\n".join(lines) + "\n"


_README = """# {notes.model}, layers {notes.first_layer} to {last}

An ONNX model with its weights beside it (`model.onnx`, `weights.bin`), for ONNX Runtime with the {notes.provider}.
It uses operators of ONNX and of ONNX Runtime's own domain `com.microsoft`. `stage.json` lists every input and output.

Sequences are rows of a batch. Several tokens of a row that has a past are run in a batch of one. A sequence has at most
{notes.context} tokens.

{tables}
Every layer has `past.N.key`, `past.N.value` and `present.N.key`, `present.N.value`.

```python
import json

import numpy as np
import onnxruntime as ort

with open("stage.json", encoding="utf-8") as file:
    stage = json.load(file)
session = ort.InferenceSession("model.onnx", providers=[stage["provider"]])
count, top_k = 3, 5  # tokens of one new sequence; candidates of its last token
sizes = {{"batch": 1, "tokens": count, "wanted": 1, "extra": 0}}
feeds = {{
    value["name"]: np.zeros([sizes.get(size, size) for size in value["shape"]], value["dtype"])
    for value in stage["inputs"]
}}
some = {{
    "tokens": [[1, 2, 3]],
    "lengths": [count - 1],
    "total": count,
    "wanted": [count - 1],
    "inverse_temperature": [[1.0]],
    "top_k": [top_k],
    "part_k": [top_k],
}}
for name in feeds.keys() & some.keys():
    feeds[name][...] = some[name]
names = [value["name"] for value in stage["outputs"]]
results = dict(zip(names, session.run(names, feeds)))
print(results["top_ids"] if stage["projects"] else results["hidden_out"].shape)
```
"""
