"""Digests of tensors that the head has not read: what workers that took them from the hub say of them. Pure.

A worker's word decides who is asked and what is checked, never what is right: a tensor that is not what was said of it
comes from the hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Claims:
    """What is said of the tensors of one transfer. Not for two threads at once."""

    def __init__(self, names: Iterable[str]) -> None:
        """`names`: the tensors without a digest of the head's; of others nobody's word is heard."""
        self._open = set(names)
        self._said: dict[int, Mapping[str, str]] = {}

    def told(self, source: int, digests: Mapping[str, str]) -> None:
        """What a source says now of all that it holds."""
        self._said[source] = digests

    def agreed(self, name: str) -> str:
        """The digest that everybody who holds a tensor says; empty where nobody does, or not all the same."""
        if name not in self._open:
            return ""
        said = {digests[name] for digests in self._said.values() if name in digests}
        return said.pop() if len(said) == 1 else ""

    def concerns(self, name: str) -> bool:
        """Whether a tensor's digest is a worker's word, if it has any."""
        return name in self._open

    def refuse(self, name: str) -> None:
        """What was said of a tensor is not true of what came: nothing more is heard of it."""
        self._open.discard(name)
