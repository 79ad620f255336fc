"""Which piece is asked of which source next. Pure: time is an argument, sources are numbers; nothing is fetched here.

Preference: peers before the head, the head before the hub. The head helps with what peers have once nothing else is
left for it; the hub is asked for what nobody on the LAN has, so that a cluster downloads a model once.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from hyperlane.store.pieces import Piece, pieces_of

STRIKES = 5
"""Failures in a row after which a source is left for good."""

FIRST_REST_S = 0.25
PEERS_FIRST_S = 1.0
"""So long the head and the hub are spared while peers have not said yet what they hold."""

LATE_FACTOR = 3.0
LATE_S = 2.0
"""A piece that takes longer, and so many times longer than another source would, is asked of that one too."""

EARLIER = -1
"""Stands for the source of pieces that an earlier process has left."""

SLOW_FACTOR = 10.0
"""A source so many times slower than the fastest is asked only for what no other has."""


class SourceKind(enum.StrEnum):
    """Where bytes come from, the preferred first."""

    CACHE = "cache"
    PEER = "peer"
    HEAD = "head"
    HUB = "hub"


@dataclass(slots=True)
class _Source:
    kind: SourceKind
    who: str
    holds: frozenset[str] | None = None
    told: bool = True
    strikes: int = 0
    rests_until_s: float = 0.0
    out: str = ""
    rate: float = 0.0
    flights: dict[Piece, float] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        return not self.out and (self.holds is None or name in self.holds)


@dataclass(slots=True)
class _Tensor:
    name: str
    verifiable: bool
    todo: dict[Piece, None]
    flying: dict[Piece, int] = field(default_factory=dict)
    by: dict[int, int] = field(default_factory=dict)
    only: int | None = None


class Dispatch:
    """The state of one transfer. Not for two threads at once."""

    def __init__(self, sources: Sequence[tuple[SourceKind, str]]) -> None:
        """`sources`: kind and name of each; its place in the sequence is its number. Peers hold nothing until told."""
        self._sources = [_Source(kind, who) for kind, who in sources]
        for source in self._sources:
            if source.kind is SourceKind.PEER:
                source.holds, source.told = frozenset(), False
        self._tensors: dict[str, _Tensor] = {}
        self._began_s: float | None = None

    # --- what is wanted --------------------------------------------------------------------------------------

    def want(self, name: str, nbytes: int, *, verifiable: bool = True, first: bool = False) -> None:
        """A tensor is needed, after those that are wanted already, or before them. Idempotent.

        `verifiable`: its digest is known; otherwise it is taken from the hub alone, which everybody has to believe.
        """
        if name in self._tensors:
            return
        tensor = _Tensor(name, verifiable, dict.fromkeys(pieces_of(name, nbytes)))
        self._tensors = {name: tensor, **self._tensors} if first else {**self._tensors, name: tensor}

    def verify(self, name: str, *, verifiable: bool) -> None:
        """Whether the digest of a tensor is known has changed. One that is not wanted is left out."""
        if name in self._tensors:
            self._tensors[name].verifiable = verifiable

    def have(self, name: str, indices: Collection[int]) -> None:
        """Pieces of a wanted tensor that are on disk already."""
        tensor = self._tensors[name]
        tensor.todo = {piece: None for piece in tensor.todo if piece.index not in indices}
        tensor.by |= dict.fromkeys(indices, EARLIER)

    def drop(self, name: str) -> None:
        """A tensor is wanted no more. Idempotent."""
        self._tensors.pop(name, None)

    def restart(self, name: str, nbytes: int, only: int | None) -> None:
        """All of a tensor once more, from one source if it is given."""
        tensor = self._tensors[name]
        tensor.todo, tensor.only = dict.fromkeys(pieces_of(name, nbytes)), only
        tensor.by.clear()

    def contributors(self, name: str) -> dict[int, int]:
        """By index of a tensor's pieces which source they came from, or EARLIER."""
        return dict(self._tensors[name].by)

    # --- sources ---------------------------------------------------------------------------------------------

    def holds(self, source: int, names: Iterable[str] | None) -> None:
        """What a source has; None: everything."""
        self._sources[source].holds = None if names is None else frozenset(names)
        self._sources[source].told = True

    @property
    def all_told(self) -> bool:
        """Whether every source has said what it has, or is left for good."""
        return all(source.told or source.out for source in self._sources)

    def next(self, source: int, now_s: float) -> Piece | None:
        """The piece to ask a source for now, which is then under way; None: nothing at the moment."""
        me = self._sources[source]
        if self._began_s is None:
            self._began_s = now_s
        if me.out or now_s < me.rests_until_s or self._waits_for_peers(me, now_s):
            return None
        piece = self._best(source, now_s) or self._late(source, now_s)
        if piece is not None:
            tensor = self._tensors[piece.name]
            tensor.todo.pop(piece, None)
            tensor.flying[piece] = tensor.flying.get(piece, 0) + 1
            me.flights[piece] = now_s
        return piece

    def arrived(self, source: int, piece: Piece, now_s: float) -> bool:
        """A source has sent a piece; whether it is to be written: False when another was faster."""
        me = self._sources[source]
        took_s = max(1e-6, now_s - me.flights.get(piece, now_s))
        rate = piece.length * max(1, len(me.flights)) / took_s  # those under way together share what there is
        me.rate, me.strikes = (me.rate + rate) / 2 if me.rate else rate, 0
        tensor = self._tensors.get(piece.name)
        if tensor is None or piece.index in tensor.by or not self._may_now(source, tensor):
            self.give_back(source, piece)
            return False
        self._land(me, piece)
        tensor.by[piece.index] = source
        tensor.todo.pop(piece, None)
        return True

    def failed(self, source: int, piece: Piece | None, why: str, now_s: float) -> None:
        """A source did not send a piece (None: it did not say what it has): it rests, longer each time."""
        me = self._sources[source]
        if now_s >= me.rests_until_s:  # else it failed together with another piece
            me.strikes += 1
            me.rests_until_s = now_s + FIRST_REST_S * 2**me.strikes
        if me.strikes >= STRIKES:
            me.out = why
        if piece is not None:
            self.give_back(source, piece)

    def give_back(self, source: int, piece: Piece) -> None:
        """A piece that a source was to send, and will not."""
        self._land(self._sources[source], piece)
        tensor = self._tensors.get(piece.name)
        if tensor is not None and piece not in tensor.flying and piece.index not in tensor.by:
            tensor.todo = {piece: None, **tensor.todo}

    def banish(self, source: int, why: str) -> None:
        """A source is left for good."""
        self._sources[source].out = why

    def sources_of(self, name: str) -> list[int]:
        """Those that may still be asked for a tensor, the one to be believed first: the head, then the hub."""
        order = (SourceKind.HEAD, SourceKind.HUB, SourceKind.PEER)
        found = [number for number, source in enumerate(self._sources) if source.has(name)]
        return sorted(found, key=lambda number: order.index(self._sources[number].kind))

    def stuck(self, name: str) -> str | None:
        """Why a tensor cannot come any more; None while it can."""
        tensor = self._tensors.get(name)
        if tensor is None or not self.all_told:
            return None
        if any(self._may(source, tensor) for source in self._sources):
            return None
        reasons = [f"{source.who}: {source.out}" for source in self._sources if source.out]
        return "; ".join(reasons) or "nobody has it"

    # --- inside ----------------------------------------------------------------------------------------------

    def _waits_for_peers(self, me: _Source, now_s: float) -> bool:
        return not self.all_told and me.kind is not SourceKind.PEER and now_s < (self._began_s or 0.0) + PEERS_FIRST_S

    def _best(self, number: int, now_s: float) -> Piece | None:
        me, spare = self._sources[number], None
        slow = self._is_slow(me)
        for tensor in self._open_to(number):
            others = [other for other in self._sources if other is not me and self._able(other, tensor, now_s)]
            if not others or not (slow or any(_before(other.kind, me.kind) for other in others)):
                return next(iter(tensor.todo))
            if spare is None and me.kind is not SourceKind.HUB and not slow:
                spare = next(iter(tensor.todo))
        return spare

    def _open_to(self, number: int) -> Iterator[_Tensor]:
        for tensor in self._tensors.values():
            if tensor.todo and self._may_now(number, tensor):
                yield tensor

    def _late(self, number: int, now_s: float) -> Piece | None:
        """A piece that somebody else is late with."""
        me = self._sources[number]
        for other in self._sources:
            for piece, began_s in other.flights.items():
                tensor = self._tensors.get(piece.name)
                if other is me or tensor is None or tensor.flying.get(piece, 0) > 1 or piece.index in tensor.by:
                    continue
                mine_s = piece.length / me.rate if me.rate else LATE_S
                late = now_s - began_s > max(LATE_S, LATE_FACTOR * mine_s)
                if late and self._may_now(number, tensor):
                    return piece
        return None

    def _may_now(self, number: int, tensor: _Tensor) -> bool:
        alone = tensor.only is not None and not self._sources[tensor.only].out
        return self._may(self._sources[number], tensor) and not (alone and tensor.only != number)

    @staticmethod
    def _may(source: _Source, tensor: _Tensor) -> bool:
        return source.has(tensor.name) and (tensor.verifiable or source.kind is SourceKind.HUB)

    def _able(self, source: _Source, tensor: _Tensor, now_s: float) -> bool:
        """Whether a source will send a tensor's pieces by itself, and soon."""
        return self._may(source, tensor) and now_s >= source.rests_until_s and not self._is_slow(source)

    def _is_slow(self, source: _Source) -> bool:
        best = max((other.rate for other in self._sources if not other.out), default=0.0)
        return 0 < source.rate * SLOW_FACTOR < best

    def _land(self, source: _Source, piece: Piece) -> None:
        source.flights.pop(piece, None)
        tensor = self._tensors.get(piece.name)
        if tensor is not None and piece in tensor.flying:
            tensor.flying[piece] -= 1
            if not tensor.flying[piece]:
                del tensor.flying[piece]


def _before(one: SourceKind, other: SourceKind) -> bool:
    order = list(SourceKind)
    return order.index(one) < order.index(other)
