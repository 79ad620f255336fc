"""How many tokens of a prompt go through a pipeline together: few keep all stages busy, many cost less each. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

WORTH = 0.02
"""A larger chunk must have the first token so much sooner (relative): measurements are no better than that."""

LONGEST_S = 0.25
LONGEST_TOKENS = 4
"""No stage and no link is to be busy with a chunk for longer than that, or than so many tokens of a stream take.

A stream that begins to decode behind the chunk waits for it. From then on the head gives prompts what each frame has
room for, whatever the chunk is.
"""


def best_chunk(
    choices: Sequence[int], first_token_s: Callable[[int], float], busy_s: Callable[[int], float], token_s: float
) -> int:
    """The smallest of the choices that has the first token as soon as any, of those that hold nobody up for long.

    Args:
        choices: tokens of a chunk, ascending, at least one.
        first_token_s: seconds until the first token of a usual prompt that is cut so.
        busy_s: the longest that any stage or link is busy with one such chunk; seconds.
        token_s: seconds per token of one stream.

    """
    limit_s = max(LONGEST_S, LONGEST_TOKENS * token_s)
    allowed = [size for size in choices if busy_s(size) <= limit_s] or choices[:1]
    seconds = {size: first_token_s(size) for size in allowed}
    soonest_s = min(seconds.values())
    return next(size for size in allowed if seconds[size] <= soonest_s * (1 + WORTH))


def pieces(prompt: int, chunk: int) -> list[int]:
    """Tokens of each frame of a prompt on an idle pipeline, as the head's scheduler cuts it: no token goes alone."""
    most = chunk + (chunk > 1)
    full = max(0, -(-(prompt - most) // chunk))
    return [*[chunk] * full, prompt - full * chunk]
