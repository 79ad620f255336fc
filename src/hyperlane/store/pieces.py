"""A tensor as pieces of one size, and the record of those that are on disk. Pure; knows no file and no source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hyperlane.models.ranges import TensorPlace

PIECE_BYTES = 4 << 20
"""What a source is asked for at a time, and what a transfer that is killed loses at most for each request under way."""


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """Bytes `offset` … `offset + length` − 1 of a tensor."""

    name: str
    index: int
    offset: int
    length: int


def piece_count(nbytes: int) -> int:
    """How many pieces a tensor of so many bytes has."""
    return -(-nbytes // PIECE_BYTES)


def pieces_of(name: str, nbytes: int) -> Iterator[Piece]:
    """All of a tensor, in order."""
    for index, offset in enumerate(range(0, nbytes, PIECE_BYTES)):
        yield Piece(name, index, offset, min(PIECE_BYTES, nbytes - offset))


def record_header(place: TensorPlace) -> bytes:
    """The first line of a record: what the pieces are of. A record that begins otherwise is of something else."""
    return f"pieces 1 {PIECE_BYTES} {place.info.nbytes} {place.digest or 'unknown'}\n".encode()


def record_line(index: int) -> bytes:
    """The line that is appended once a piece's bytes are written."""
    return b"%d\n" % index


def read_record(record: bytes, place: TensorPlace) -> frozenset[int] | None:
    """The pieces that are on disk; None for a record of something else. A line without its end was never finished."""
    header, count = record_header(place), piece_count(place.info.nbytes)
    if not record.startswith(header):
        return None
    lines = record[len(header) :].split(b"\n")[:-1]
    return frozenset(int(line) for line in lines if line.isdigit() and int(line) < count)
