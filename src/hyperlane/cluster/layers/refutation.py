"""Who sent wrong bytes. A tensor whose digest is wrong is fetched again from one source; comparison names the liars.

Pure; knows digests, not bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from hyperlane.cluster.layers.dispatch import EARLIER, Dispatch

log = logging.getLogger(__name__)


class Refutation:
    """What is held against the sources of one transfer. Not for two threads at once."""

    def __init__(self, dispatch: Dispatch, who: Sequence[str]) -> None:
        """`who`: the sources' names, by number."""
        self._dispatch = dispatch
        self._who = who
        self._suspects: dict[str, dict[int, tuple[int, str]]] = {}

    def suspects(self, name: str) -> bool:
        """Whether wrong pieces of a tensor wait to be compared with right ones."""
        return name in self._suspects

    def wrong(self, name: str, nbytes: int, pieces: Mapping[int, str]) -> None:
        """A whole tensor does not have its digest; `pieces`: the digests of its pieces. It is fetched once more."""
        by = self._dispatch.contributors(name)
        senders = set(by.values())
        if len(senders) == 1 and EARLIER not in senders:
            self._convict(senders.pop(), name)
        elif senders != {EARLIER}:
            log.warning("tensor '%s' is not what it should be; it is fetched again from one source", name)
            self._suspects.setdefault(name, {}).update({index: (by[index], pieces[index]) for index in pieces})
        trusted = self._dispatch.sources_of(name)
        self._dispatch.restart(name, nbytes, trusted[0] if trusted else None)

    def right(self, name: str, pieces: Mapping[int, str]) -> None:
        """A tensor has its digest; those that sent other pieces before are left out from now on."""
        held = self._suspects.pop(name, {})
        for liar in {sender for index, (sender, digest) in held.items() if pieces.get(index) != digest} - {EARLIER}:
            self._convict(liar, name)

    def _convict(self, source: int, name: str) -> None:
        why = f"it sent bytes of tensor '{name}' that are not what they should be: the hash differs"
        log.warning("%s is left out: %s", self._who[source], why)
        self._dispatch.banish(source, why)
