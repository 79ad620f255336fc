"""Figures that a benchmark writes into a page."""

from __future__ import annotations

import pytest

from hyperlane.bench.pages import write_figures
from hyperlane.errors import UsageError

PAGE = "before\n<!-- figures: one -->\nold\n<!-- end -->\nbetween\n<!-- figures: two -->\n<!-- end -->\nafter\n"


def test_figures_replace_what_stands_between_their_marks_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    write_figures(page, "two", "a \\1 b\n")
    write_figures(page, "two", "a \\2 b\n")
    expected = PAGE.replace("two -->\n", "two -->\n```\na \\2 b\n```\n")
    assert page.read_text(encoding="utf-8") == expected


def test_a_page_without_marks_is_left_and_said(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    with pytest.raises(UsageError, match="figures: three"):
        write_figures(page, "three", "text")
    assert page.read_text(encoding="utf-8") == PAGE
