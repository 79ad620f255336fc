"""What a failure keeps alive, and how it is let go. Knows no engine and no device."""

from __future__ import annotations

import gc
import traceback


def let_go(error: BaseException) -> None:
    """Forget what the frames hold that an error, and what caused it, came through.

    A load that fails leaves sessions and arrays in those frames: as long as somebody holds the error, a device's memory
    would be taken. Frames that still run keep what they have.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        left += [one.__cause__, one.__context__]
    gc.collect()
