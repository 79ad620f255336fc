"""Brings tensors from several sources at once to the disk, verified. Threads; which piece is next `dispatch` decides.

Blocking, with threads of its own: it is used by the thread that loads a stage, while the worker's event loop answers
Health.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from hyperlane.cluster.layers.claims import Claims
from hyperlane.cluster.layers.dispatch import Dispatch, SourceKind
from hyperlane.cluster.layers.meter import Meter, Moved
from hyperlane.cluster.layers.refutation import Refutation
from hyperlane.cluster.layers.sources import PieceSource
from hyperlane.errors import LoadFailed, TransferError
from hyperlane.models.ranges import TensorPlace
from hyperlane.store.partial import PartialTensor
from hyperlane.store.pieces import Piece, piece_count, pieces_of
from hyperlane.store.tensor_store import TensorStore

log = logging.getLogger(__name__)

IDLE_S = 0.1
REPORT_EVERY_S = 0.25
ASK_AGAIN_S = 2.0
"""Peers are asked so often what they have: they may be fetching themselves."""


class LayerFetcher:
    """The transfer of one stage's tensors. Every method from any thread. Close it."""

    def __init__(
        self, model: str, places: Mapping[str, TensorPlace], store: TensorStore, sources: Sequence[PieceSource]
    ) -> None:
        """`model`: its fingerprint. `places`: by name what may be asked for. `sources` are closed with this."""
        self._model, self._places, self._store, self._sources = model, dict(places), store, sources
        self._claims = Claims(name for name, place in places.items() if not place.digest)
        self._dispatch = Dispatch([(source.kind, source.who) for source in sources])
        self._refutation = Refutation(self._dispatch, [source.who for source in sources])
        self._change = threading.Condition()
        self._whole: dict[str, Path] = {}
        self._open: dict[str, PartialTensor] = {}
        self._elsewhere: set[str] = set()
        self._meter = Meter()
        self._broken: Exception | None = None
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"fetch-{source.kind}", daemon=True)
            for number, source in enumerate(sources)
            for _ in range(source.parallel)
        ]
        # Hashing and syncing a tensor must not keep a source waiting.
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="fetch-finish")
        self._started = False

    # --- what is wanted --------------------------------------------------------------------------------------

    def expect(self, names: Sequence[str]) -> None:
        """Fetch tensors, in this order; those that are on disk are only looked at."""
        for name in dict.fromkeys(names):
            self._want(name)
        self._start()

    def missing_bytes(self, names: Sequence[str]) -> int:
        """Of the tensors that are not whole on this disk."""
        places = (self._places[name] for name in dict.fromkeys(names) if name not in self._whole)
        return sum(place.info.nbytes for place in places if self._store.find(self._model, place) is None)

    def wait(self, name: str, report: Callable[[Moved], None]) -> Path:
        """A tensor's file, once it is whole and verified. `report` is told how far all is; what it raises ends this.

        Raises:
            TransferError: no source can send it any more, or none sends the right bytes; the message has the reasons.
            LoadFailed: the disk is full, or cannot be written.

        """
        self._want(name, first=True)
        self._start()
        while True:
            with self._change:
                if name in self._whole:
                    return self._whole[name]
                self._raise_if_over(name)
                self._change.wait(REPORT_EVERY_S)
                self._retry_elsewhere(name)
            report(self.moved())

    def moved(self) -> Moved:
        """How much there is, came from where, and how fast."""
        with self._change:
            return self._meter.read(time.monotonic())

    def close(self) -> None:
        """End the transfer; what has arrived stays on disk for the next one. Idempotent."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        for source in self._sources:
            source.close()
        if self._started:
            for thread in self._threads:
                thread.join()
        self._finisher.shutdown(wait=True)
        with self._change:
            for partial in self._open.values():
                partial.close()
            self._open.clear()

    # --- inside: tensors -------------------------------------------------------------------------------------

    def _start(self) -> None:
        with self._change:
            if self._started or self._closing:
                return
            self._started = True
        for thread in self._threads:
            thread.start()

    def _want(self, name: str, *, first: bool = False) -> None:
        place = self._places.get(name)
        if place is None:
            raise TransferError(f"the stage was told of no tensor '{name}'")
        with self._change:
            if self._meter.knows(name):
                return
            self._meter.expect(name, place.info.nbytes)
        found = self._store.find(self._model, place)
        with self._change:
            if found is not None:
                self._whole[name] = found
                self._meter.add(name, SourceKind.CACHE, place.info.nbytes, time.monotonic())
            else:
                self._dispatch.want(name, place.info.nbytes, verifiable=bool(place.digest), first=first)
            self._change.notify_all()

    def _raise_if_over(self, name: str) -> None:
        if isinstance(self._broken, OSError):
            raise LoadFailed(
                f"tensors cannot be kept in {self._store.root}: {self._broken.strerror or self._broken}; free some "
                "space (`hyperlane cache` says what is there), or set HYPERLANE_HOME to another place"
            ) from self._broken
        if self._broken is not None:
            raise self._broken
        reason = self._dispatch.stuck(name)
        if reason is not None:
            raise TransferError(f"tensor '{name}' cannot be had: {reason}")

    def _retry_elsewhere(self, name: str) -> None:
        """Another process of this machine was fetching a tensor: it may be whole by now, or given up."""
        if name not in self._elsewhere:
            return
        place = self._places[name]
        found = self._store.find(self._model, place)
        if found is not None:
            self._whole[name] = found
            self._elsewhere.discard(name)
            self._meter.add(name, SourceKind.CACHE, place.info.nbytes, time.monotonic())
        elif (partial := self._store.partial(self._model, place)) is not None:
            partial.close()
            self._elsewhere.discard(name)
            self._dispatch.want(name, place.info.nbytes, verifiable=bool(place.digest), first=True)
            self._change.notify_all()

    # --- inside: threads -------------------------------------------------------------------------------------

    def _work(self, number: int) -> None:
        """One of a source's threads."""
        asked_s = -ASK_AGAIN_S
        try:
            while not self._closing:
                if time.monotonic() - asked_s >= ASK_AGAIN_S:
                    asked_s = time.monotonic()
                    self._ask_held(number)
                taken = self._take(number)
                if taken is not None:
                    self._fetch(number, *taken)
        except Exception as error:  # noqa: BLE001 (the supervisor of a transfer's threads: whoever waits is told)
            with self._change:
                self._broken = error
                self._change.notify_all()

    def _ask_held(self, number: int) -> None:
        source = self._sources[number]
        if source.kind is not SourceKind.PEER:
            return
        try:
            held = source.held()
        except TransferError as error:
            with self._change:
                self._dispatch.failed(number, None, str(error), time.monotonic())
            return
        with self._change:
            self._dispatch.holds(number, held)
            self._claims.told(number, held or {})
            if self._dispatch.all_told:
                self._believe()

    def _believe(self) -> None:
        """Take the peers' word for the digests of tensors that are not begun; one that is goes on as it began."""
        for name in self._places:
            if self._claims.concerns(name) and name not in self._open:
                self._set_digest(name, self._claims.agreed(name))

    def _set_digest(self, name: str, digest: str) -> None:
        self._places[name] = replace(self._places[name], digest=digest)
        self._dispatch.verify(name, verifiable=bool(digest))

    def _take(self, number: int) -> tuple[Piece, PartialTensor] | None:
        with self._change:
            piece = self._dispatch.next(number, time.monotonic())
            if piece is None:
                if not self._closing:
                    self._change.wait(IDLE_S)
                return None
            partial = self._open.get(piece.name) or self._take_up(piece)
            if partial is None or piece.index in partial.done:
                self._dispatch.give_back(number, piece)
                return None
            return piece, partial

    def _take_up(self, piece: Piece) -> PartialTensor | None:
        """Open a tensor's files, with what an earlier process has left; None if another process has them open."""
        name, place = piece.name, self._places[piece.name]
        partial = self._store.partial(self._model, place)
        if partial is None or self._store.path(self._model, name).exists():
            if partial is not None:
                partial.close()
            self._dispatch.drop(name)
            self._elsewhere.add(name)
            return None
        self._open[name] = partial
        if partial.done:
            self._dispatch.have(name, partial.done)
            found = sum(each.length for each in pieces_of(name, place.info.nbytes) if each.index in partial.done)
            self._meter.add(name, SourceKind.CACHE, found, time.monotonic())
        if len(partial.done) == piece_count(place.info.nbytes):
            self._finisher.submit(self._finish_told, partial)
            return None
        return partial

    def _fetch(self, number: int, piece: Piece, partial: PartialTensor) -> None:
        source = self._sources[number]
        try:
            data = source.fetch(piece)
        except TransferError as error:
            log.info("%s", error)
            with self._change:
                self._dispatch.failed(number, piece, str(error), time.monotonic())
            return
        with self._change:
            wanted = self._dispatch.arrived(number, piece, time.monotonic())
            if not wanted or self._closing or self._open.get(piece.name) is not partial:
                return
            self._meter.add(piece.name, source.kind, piece.length, time.monotonic())
        if partial.write(piece, data):
            self._finisher.submit(self._finish_told, partial)

    def _finish_told(self, partial: PartialTensor) -> None:
        try:
            self._finish(partial)
        except Exception as error:  # noqa: BLE001 (the supervisor of the finishing thread: whoever waits is told)
            with self._change:
                self._broken = error
                self._change.notify_all()

    def _finish(self, partial: PartialTensor) -> None:
        """All pieces are there: publish the tensor, or find out who lied."""
        name, nbytes, expected = partial.place.info.name, partial.place.info.nbytes, partial.place.digest
        digest = partial.digest()
        if expected in ("", digest) or self._has_the_last_word(name):
            suspected = self._refutation.suspects(name)
            sound = partial.piece_digests() if suspected else {}
            path = partial.publish(digest)
            with self._change:
                self._refutation.right(name, sound)
                self._open.pop(name, None)
                self._dispatch.drop(name)
                self._whole[name] = path
                self._change.notify_all()
            return
        pieces = partial.piece_digests()
        with self._change:
            if self._claims.concerns(name):
                log.warning("tensor '%s' is not what a worker says that it is; it comes from the hub", name)
                self._claims.refuse(name)
                self._set_digest(name, "")
                partial.place = self._places[name]
        partial.restart()
        with self._change:
            self._refutation.wrong(name, nbytes, pieces)
            self._meter.forget(name)
            self._change.notify_all()

    def _has_the_last_word(self, name: str) -> bool:
        """Whether a tensor came from the hub alone, and what its digest should be is but a worker's word."""
        with self._change:
            senders = set(self._dispatch.contributors(name).values())
            kinds = {self._sources[number].kind for number in senders if number >= 0}
            return self._claims.concerns(name) and len(senders) == 1 and kinds == {SourceKind.HUB}
