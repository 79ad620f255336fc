"""Timelines as an SVG picture: a lane for each stage, a bar for each frame that it computed. Pure text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from hyperlane.bench.timeline import Bar, Timeline

WIDTH, LANE, LEFT, TOP, GAP = 1200, 34, 90, 54, 30
"""Pixels: of the lanes, of one lane's height, of the space left of them, above a panel's lanes, and between panels."""

PROMPT_COLOURS = ("#2f6fde", "#6ea0f0")
DECODE_COLOURS = ("#e07b39", "#f2ab7d")
"""Of bars that follow each other, so that they can be told apart."""

TICKS = 8


@dataclass(frozen=True, slots=True)
class Panel:
    """A timeline with its title. `is_prompt`: the colour of its bars."""

    title: str
    timeline: Timeline
    is_prompt: bool


def svg(panels: Sequence[Panel]) -> str:
    """One picture of all panels, below each other."""
    heights = [_height(panel) for panel in panels]
    height = sum(heights) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 40}" height="{height}" '
        f'viewBox="0 0 {LEFT + WIDTH + 40} {height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    top = 0
    for panel, own in zip(panels, heights, strict=True):
        parts += _panel(panel, top)
        top += own
    return "\n".join([*parts, "</svg>"]) + "\n"


def _height(panel: Panel) -> int:
    return TOP + LANE * panel.timeline.stages + GAP


def _panel(panel: Panel, top: int) -> Iterator[str]:
    line, length_s = panel.timeline, panel.timeline.length_s or 1.0
    title = f"{panel.title}: {1e3 * line.length_s:.0f} ms, {line.bubble:.1%} of the stages' time is bubble"
    yield f'<text x="{LEFT}" y="{top + 24}" font-size="15">{escape(title)}</text>'
    bottom = top + TOP + LANE * line.stages
    for tick in range(TICKS + 1):
        x = LEFT + WIDTH * tick / TICKS
        yield f'<line x1="{x:.1f}" y1="{top + TOP - 6}" x2="{x:.1f}" y2="{bottom}" stroke="#ddd"/>'
        yield (
            f'<text x="{x:.1f}" y="{top + TOP - 10}" text-anchor="middle" fill="#666">'
            f"{1e3 * length_s * tick / TICKS:.0f} ms</text>"
        )
    for stage in range(line.stages):
        y = top + TOP + LANE * stage
        yield f'<text x="{LEFT - 10}" y="{y + LANE // 2 + 4}" text-anchor="end">stage {stage}</text>'
        yield f'<rect x="{LEFT}" y="{y + 3}" width="{WIDTH}" height="{LANE - 6}" fill="#f4f4f4"/>'
        bars = [bar for bar in line.bars if bar.stage == stage]
        colours = PROMPT_COLOURS if panel.is_prompt else DECODE_COLOURS
        for number, bar in enumerate(bars):
            yield from _bar(bar, y, WIDTH / length_s, colours[number % len(colours)])


def _bar(bar: Bar, y: int, scale: float, colour: str) -> Iterator[str]:
    x, width = LEFT + bar.begin_s * scale, max(0.5, (bar.end_s - bar.begin_s) * scale)
    says = f"{bar.tokens} tokens, {1e3 * bar.begin_s:.1f} to {1e3 * bar.end_s:.1f} ms"
    yield (
        f'<rect x="{x:.2f}" y="{y + 3}" width="{width:.2f}" height="{LANE - 6}" fill="{colour}">'
        f"<title>{says}</title></rect>"
    )
    if width > 26:
        middle = f'x="{x + width / 2:.1f}" y="{y + LANE // 2 + 4}" text-anchor="middle"'
        yield f'<text {middle} fill="white">{bar.tokens}</text>'
