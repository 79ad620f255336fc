"""Figures into documents: what a benchmark printed replaces what stands between two marks of a page."""

from __future__ import annotations

import re
from pathlib import Path

from hyperlane.errors import UsageError


def write_figures(page: Path, name: str, text: str) -> None:
    """Put a text, as a block of code, between `<!-- figures: NAME -->` and `<!-- end -->`.

    Raises:
        UsageError: the page has no such marks.

    """
    before = page.read_text(encoding="utf-8")
    mark = f"<!-- figures: {name} -->"
    pattern = re.compile(re.escape(mark) + r".*?<!-- end -->", re.DOTALL)
    if not pattern.search(before):
        raise UsageError(f"{page} has no place for these figures: write {mark} and <!-- end --> where they belong")
    block = f"{mark}\n```\n{text.strip()}\n```\n<!-- end -->"
    page.write_text(pattern.sub(lambda _: block, before, count=1), encoding="utf-8")
