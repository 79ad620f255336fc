"""Finding tokens that are written out in a text: the longest one at the leftmost place. Knows no vocabulary model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(slots=True)
class _Node:
    """One character of a trie; `token` is the id of the text that ends here, or -1."""

    children: dict[str, _Node] = field(default_factory=dict)
    token: int = -1


class LiteralTokens:
    """A set of tokens that stand for themselves, as `<|im_start|>` or a run of newlines."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self._root = _Node()
        for text, token in tokens.items():
            node = self._root
            for character in text:
                node = node.children.setdefault(character, _Node())
            node.token = token
        first = "".join(map(re.escape, self._root.children))
        self._candidates = re.compile(f"[{first}]") if first else None

    def split(self, text: str) -> list[str | int]:
        """The text as fragments: plain strings (never empty) and token ids, in order."""
        if self._candidates is None:
            return [text] if text else []
        fragments: list[str | int] = []
        done = at = 0
        while (candidate := self._candidates.search(text, at)) is not None:
            token, end = self._longest(text, candidate.start())
            if token < 0:
                at = candidate.start() + 1
                continue
            if candidate.start() > done:
                fragments.append(text[done : candidate.start()])
            fragments.append(token)
            done = at = end
        if done < len(text):
            fragments.append(text[done:])
        return fragments

    def guard(self, text: str, mark: str) -> str:
        """The text with `mark` put into every place where one of the tokens begins, so that `split` finds none.

        A beginning that the end of the text cuts off counts too, spaces after it left aside: what follows could
        complete it. Taking the marks out gives the text back.
        """
        if self._candidates is None:
            return text
        end = len(text.rstrip())
        candidates = (found.start() for found in self._candidates.finditer(text))
        bounds = [0, *(at + 1 for at in candidates if self._begins(text, at, end)), len(text)]
        return mark.join(text[begin:stop] for begin, stop in pairwise(bounds))

    def _longest(self, text: str, at: int) -> tuple[int, int]:
        node, token, end = self._root, -1, at
        while at < len(text):
            found = node.children.get(text[at])
            if found is None:
                break
            node, at = found, at + 1
            if node.token >= 0:
                token, end = node.token, at
        return token, end

    def _begins(self, text: str, at: int, end: int) -> bool:
        node = self._root
        while at < len(text):
            found = node.children.get(text[at])
            if found is None:
                return at >= end  # only spaces are left
            if found.token >= 0:
                return True
            node, at = found, at + 1
        return True
