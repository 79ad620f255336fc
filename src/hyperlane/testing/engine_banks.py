"""What an engine's banks promise, as a check of `hyperlane.testing.engines`: frames of one leave the other's alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyperlane.core import Row
from hyperlane.stage.engine import Engine
from hyperlane.wire.kind import Buffer


def banks_change_nothing(plain: Sequence[Engine], banked: Sequence[Engine], prompt: Sequence[int]) -> None:
    """Two stages come to the bits of two that use no banks. `prompt`: at least 24 tokens."""
    frames: list[tuple[tuple[Row, ...], list[int]]] = [
        ((Row(0, 0, 16), Row(2, 0, 3)), [*prompt[:16], *prompt[:3]]),
        ((Row(0, 16, 4, (3,)), Row(2, 3, 1, (0,))), [*prompt[16:20], prompt[3]]),
        ((Row(0, 20, 1, (0,)), Row(1, 0, 1, (0,)), Row(2, 4, 1, (0,))), [prompt[20], prompt[0], prompt[4]]),
        ((Row(0, 21, 3, (2,)),), list(prompt[21:24])),
    ]
    rows = [one for one, _ in frames]
    payloads = [np.asarray(tokens, "<i4").tobytes() for _, tokens in frames]
    for usual, engine in zip(plain, banked, strict=True):
        ways = _by_turns(engine, rows, payloads, lasting=engine is not banked[-1])
        payloads = [_at_once(usual, one, payload) for one, payload in zip(rows, payloads, strict=True)]
        assert ways == payloads


def _at_once(engine: Engine, rows: Sequence[Row], payload: bytes) -> bytes:
    engine.input_buffer(rows)[:] = payload
    return b"".join(engine.step(rows))


def _by_turns(
    engine: Engine, frames: Sequence[Sequence[Row]], payloads: Sequence[bytes], *, lasting: bool
) -> list[bytes]:
    """What a stage sends for frames whose banks take turns; `lasting`: looked at after the step that follows."""
    sent: list[bytes] = []
    going: Sequence[Buffer] = ()
    engine.input_buffer(frames[0], 0)[:] = payloads[0]
    for number, rows in enumerate(frames):
        if number + 1 < len(frames):
            engine.input_buffer(frames[number + 1], (number + 1) % 2)[:] = payloads[number + 1]
        last, going = going, engine.step(rows, number % 2)
        sent += [b"".join(last)] if number else []
        going = going if lasting else [b"".join(going)]
    return [*sent, b"".join(going)]
