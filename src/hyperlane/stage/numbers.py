"""What a provider computes in, and weights of those types. Knows the table of providers, no runtime."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
from onnx import TensorProto

from hyperlane.core import ElementType
from hyperlane.graph import numbers as types
from hyperlane.graph.forms import offsets_name, scales_name, values_name
from hyperlane.graph.numbers import Numbers
from hyperlane.stage.options import EngineOptions, KvElement
from hyperlane.stage.providers import provider_of
from hyperlane.stage.weights import EMBEDDING, Arrays

TypedArray = npt.NDArray[Any]
"""An array of weights in the type that its operator takes it in."""

_ELEMENTS = {int(TensorProto.FLOAT): ElementType.F32, int(TensorProto.FLOAT16): ElementType.F16}
_FLOATS = tuple(name("") for name in (scales_name, values_name, offsets_name))


def numbers_of(options: EngineOptions, family: str) -> Numbers:
    """The types that a stage of this family is computed in."""
    half = provider_of(options.device).half and not options.single
    return types.numbers_of(family, half=half, half_cache=options.kv is KvElement.F16 and not options.single)


def element_of(numbers: Numbers) -> ElementType:
    """What a raw link carries."""
    return _ELEMENTS[numbers.stream]


def in_types(arrays: Arrays, numbers: Numbers) -> dict[str, TypedArray]:
    """A unit's arrays with every float in the type that its operator takes it in.

    Vectors belong to norms, and the embedding's rows become the residual stream: both have the stream's type.
    """
    found: dict[str, TypedArray] = {}
    for name, array in arrays.items():
        if not name.endswith(_FLOATS):
            found[name] = array
            continue
        streams = array.ndim == 1 or name.startswith(f"{EMBEDDING}/")
        found[name] = array.astype(numbers.stream_dtype if streams else numbers.matrix_dtype, copy=False)
    return found
