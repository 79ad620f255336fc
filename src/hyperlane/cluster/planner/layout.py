"""Which worker has which layers, in the order of the ring. Plain data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from hyperlane.core import LayerRange


@dataclass(frozen=True, slots=True)
class Share:
    """One stage: the worker's place among `ClusterFacts.workers`, and its layers."""

    worker: int
    layers: LayerRange


Layout = tuple[Share, ...]
"""Stages in the order of the ring; together they have every layer of the model once."""


def layout_of(shares: Iterable[tuple[int, int, int]]) -> Layout:
    """From (worker, first layer, end of layers) of each stage."""
    return tuple(Share(worker, LayerRange(first, last)) for worker, first, last in shares)


def links_of(layout: Layout, head: int) -> Iterator[tuple[int, int]]:
    """The links of the ring as (from, to), with `head` as the head's number."""
    return pairwise((head, *(share.worker for share in layout), head))
