"""The seam between a stage and what computes it. One Protocol, real and fake engines, one conformance suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hyperlane.core import ElementType, Row


class Engine(Protocol):
    """Weights and KV arena of one stage on one device. Used by one thread; runs one step at a time.

    The first stage takes int32 token ids, every other one packed hidden states; the last stage returns candidates
    (`hyperlane.wire.candidates` has the layout) or whole logits, every other one packed hidden states.
    """

    @property
    def element(self) -> ElementType:
        """The engine's own activation type: what a `raw` link carries."""
        ...

    @property
    def private_bytes(self) -> int:
        """Bytes of the KV arena and buffers, as counted when they were made."""
        ...

    def input_buffer(self, rows: Sequence[Row], bank: int | None = None) -> memoryview:
        """Writable bytes that the payload of a frame with these rows must be received into, exactly as long.

        Valid until the next call. Raises ProtocolError when the rows exceed slots, context or tokens a step.

        `bank`: 0 or 1, for large frames, so that one is received and another sent while a step is computed. Such a
        buffer lasts until the next call for the same bank, and may be asked for and filled by another thread while a
        step of the other bank runs. Of its rows only the number of tokens is checked here, the rest by `step`.
        """
        ...

    def step(self, rows: Sequence[Row], bank: int | None = None) -> Sequence[memoryview]:
        """Compute the frame whose payload was received into `input_buffer(rows, bank)`; rows may be ragged.

        Returns the payload to send on, rows in frame order, valid until the next call; hidden states in a bank until
        the next call with that bank. A row in which nothing is wanted adds nothing to a last stage's payload.

        Raises:
            EngineFault: the device failed, or a value is not finite. KV entries of these rows are then undefined.
            ProtocolError: the payload holds token ids beyond the vocabulary; nothing was computed.

        """
        ...

    def copy(self, source: int, destination: int, count: int) -> None:
        """Copy the first `count` KV positions of one slot to another."""
        ...

    def close(self) -> None:
        """Free the device's memory. Idempotent."""
        ...
