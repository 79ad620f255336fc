"""Attention over KV entries: one operator for a run's rows, or several where attention takes tokens apart.

Knows nothing of the matmuls around it, which take all tokens of a run together either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyperlane.core import ModelFacts, RopeFacts
from hyperlane.graph import names
from hyperlane.graph.builder import Dim, GraphBuilder
from hyperlane.graph.numbers import Numbers
from hyperlane.graph.rope import rotary_tables


@dataclass(frozen=True, slots=True)
class Kind:
    """What differs between a model's layers. `window`: positions that are seen, -1 for all."""

    window: int
    rope: RopeFacts


class Attention:
    """Adds a layer's attention to a graph. `positions`: entries of a slot in the KV arena.

    `singles`: 0, or how many tokens of one slot a run holds, each of which is attended to as a decode step would: over
    one token attention sums in another order than over several. `beside`: a run, [1, tokens, …], holds rows of one
    token and behind them several tokens of another slot, a prompt's, which the operator takes only by themselves.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        facts: ModelFacts,
        numbers: Numbers,
        positions: int,
        singles: int = 0,
        *,
        beside: bool = False,
    ) -> None:
        self._graph = graph
        self._facts = facts
        self._numbers = numbers
        self._positions = positions
        self._singles = singles
        self._beside = beside

    def add(self, qkv: Sequence[str], index: int, kind: Kind) -> str:
        """Attention of layer `index` over its slot's KV entries, which it also extends.

        `qkv`: one packed value, or q, k and v; [batch, tokens, …] of the matrices' type, and so is the result.
        """
        numbers, path = self._numbers, f"layer.{index}/attn"
        given = [self._cast(x, numbers.matrix, numbers.cache, f"{x}/half") for x in qkv]
        attended = path if numbers.cache == numbers.matrix else f"{path}/half"
        past = [names.past(index, kv) for kv in names.KV]
        for name in past:
            self._graph.input(name, numbers.cache, self._entries)
        if self._beside:
            self._both(attended, given, past, index, kind)
        elif self._singles:
            self._one_by_one(attended, given, past, index, kind)
        else:
            self._attend(attended, given, past, self._given_back(index), names.LENGTHS, kind)
        return self._cast(attended, numbers.cache, numbers.matrix, path)

    @property
    def _entries(self) -> list[Dim]:
        return ["batch", self._facts.kv_heads, self._positions, self._facts.head_dim]

    def _given_back(self, index: int, token: int | None = None) -> list[str]:
        """The entries as outputs: key, value."""
        present = [names.present(index, kv) if token is None else names.passing(index, kv, token) for kv in names.KV]
        for name in present:
            self._graph.output(name, self._numbers.cache, self._entries)
        return present

    def _both(self, name: str, given: Sequence[str], past: Sequence[str], index: int, kind: Kind) -> None:
        """Rows of one token, and a row of several of another slot behind them: each kind has its own operator."""
        graph, counts = self._graph, names.COUNTS
        apart = graph.constant("beside/apart", np.array([-1, 1, 0], np.int64))
        joined = graph.constant("beside/joined", np.array([1, -1, 0], np.int64))
        rows, prompt = [], []
        for x in given:
            graph.node("Split", [x, counts], f"{x}/split", outputs=[f"{x}/rows", f"{x}/prompt"], axis=1)
            rows.append(graph.node("Reshape", [f"{x}/rows", apart], f"{x}/apart"))
            prompt.append(f"{x}/prompt")
        self._attend(f"{name}/rows", rows, past, self._given_back(index), names.LENGTHS, kind)
        own = [names.beside(one) for one in past]
        back = [names.beside(names.present(index, kv)) for kv in names.KV]
        for one, other in zip(own, back, strict=True):
            graph.input(one, self._numbers.cache, ["one", *self._entries[1:]])
            graph.output(other, self._numbers.cache, ["one", *self._entries[1:]])
        self._attend(f"{name}/prompt", prompt, own, back, names.BESIDE_LENGTHS, kind, names.BESIDE_TOTAL)
        flat = graph.node("Reshape", [f"{name}/rows", joined], f"{name}/joined")
        graph.node("Concat", [flat, f"{name}/prompt"], name, axis=1)

    def _one_by_one(self, name: str, given: Sequence[str], past: Sequence[str], index: int, kind: Kind) -> None:
        """Each token finds the entries of the one before, in the same memory: what passes between them is bound there.

        So they run in their order.
        """
        count = self._singles
        lengths = self._split(names.LENGTHS, axis=0)
        tokens = [self._split(x, axis=1) for x in given]
        parts = [f"{name}/{token}" for token in range(count)]
        for token, part in enumerate(parts):
            present = self._given_back(index, token if token < count - 1 else None)
            self._attend(part, [x[token] for x in tokens], past, present, lengths[token], kind)
            past = present
        self._graph.node("Concat", parts, name, axis=1)

    def _split(self, x: str, axis: int) -> list[str]:
        """The tokens of x, each by itself; once for each x."""
        parts = [f"{x}/{token}" for token in range(self._singles)]
        ones = self._graph.constant("singles/sizes", np.ones(self._singles, np.int64))
        if not self._graph.has_node(f"{x}/singles"):
            self._graph.node("Split", [x, ones], f"{x}/singles", outputs=parts, axis=axis)
        return parts

    def _attend(  # noqa: PLR0917
        self,
        name: str,
        qkv: Sequence[str],
        past: Sequence[str],
        present: Sequence[str],
        lengths: str,
        kind: Kind,
        total: str = names.TOTAL,
    ) -> None:
        facts = self._facts
        cosines, sines = self._rotary(kind.rope)
        self._graph.contrib(
            "GroupQueryAttention",
            [*qkv, *[""] * (3 - len(qkv)), *past, lengths, total, cosines, sines],
            name,
            outputs=[name, *present],
            num_heads=facts.heads,
            kv_num_heads=facts.kv_heads,
            scale=facts.attention_scale or facts.head_dim**-0.5,
            softcap=facts.attention_softcap,
            local_window_size=kind.window,
            do_rotary=1,
            rotary_interleaved=0,
        )

    def _rotary(self, rope: RopeFacts) -> tuple[str, str]:
        kind = "local" if rope == self._facts.rope_local else "global"
        cosines, sines = f"rope.{kind}/cos", f"rope.{kind}/sin"
        if not self._graph.has_constant(cosines):
            for name, table in zip((cosines, sines), rotary_tables(rope, self._positions), strict=True):
                self._graph.constant(name, table.astype(self._numbers.cache_dtype))
        return cosines, sines

    def _cast(self, x: str, have: int, want: int, name: str) -> str:
        return x if have == want else self._graph.node("Cast", [x], name, to=want)
