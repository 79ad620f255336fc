"""Rows as bytes and back. Pure; the layout is in `docs/wire-format.md`."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

from hyperlane.core import Row
from hyperlane.errors import ProtocolError
from hyperlane.wire.limits import Limits

ROW = struct.Struct("<dIIIHHHBB")
"""temperature, start, count, listed wants, slot, top_k, extra ids, how wants are given, flags."""

START = struct.Struct("<I")
START_AT = 8
"""Where a row's start lies in its bytes."""

WORD = 4
WANT_NONE, WANT_LAST, WANT_LIST = 0, 1, 2
WHOLE_LOGITS = 1
MOST_SKIPPED_FROM = 63
ONE_BY_ONE = 128
"""Flags are a byte: bit 0 whole logits, bits 1 to 6 the first stage that leaves the row out, bit 7 one by one."""

_INFINITY = float("inf")


def rows_size(rows: Sequence[Row]) -> int:
    """Bytes of these rows."""
    size = ROW.size * len(rows)
    for row in rows:
        want = row.want
        listed = 0 if len(want) == 1 and want[0] == row.count - 1 else len(want)
        size += WORD * (listed + len(row.extra_ids))
    return size


def largest_rows_size(limits: Limits) -> int:
    """The most bytes that the rows of one frame can have under these limits."""
    return limits.max_rows * (ROW.size + WORD * limits.max_extra_ids) + WORD * limits.max_step_tokens


def pack_rows(rows: Sequence[Row]) -> bytes:
    """Fixed parts of all rows, then each row's lists: wanted positions that are listed, extra ids.

    Raises:
        struct.error: a number is outside its field's range.

    """
    pack = ROW.pack
    parts = []
    lists: list[int] = []
    for row in rows:
        want, extra = row.want, row.extra_ids
        mode, listed = WANT_NONE, 0
        if want:
            if len(want) == 1 and want[0] == row.count - 1:
                mode = WANT_LAST
            else:
                mode, listed = WANT_LIST, len(want)
                lists += want
        if extra:
            lists += extra
        flags = row.skip_from << 1 | row.whole_logits | (ONE_BY_ONE if row.one_by_one else 0)
        parts.append(pack(row.temperature, row.start, row.count, listed, row.slot, row.top_k, len(extra), mode, flags))
    if lists:
        parts.append(struct.pack(f"<{len(lists)}I", *lists))
    return b"".join(parts)


def unpack_rows(data: memoryview, count: int, limits: Limits) -> tuple[Row, ...]:
    """Rows from exactly these bytes, every field checked.

    Raises:
        ProtocolError: the message names the row and the field.

    """
    fixed = count * ROW.size
    if len(data) < fixed or (len(data) - fixed) % WORD:
        raise ProtocolError(f"{len(data)} bytes cannot hold {count} rows")
    words = struct.unpack(f"<{(len(data) - fixed) // WORD}I", data[fixed:]) if len(data) > fixed else ()
    rows: list[Row] = []
    tokens = at = 0
    for fields in ROW.iter_unpack(data[:fixed]):
        temperature, start, length, listed, slot, top_k, extras, mode, flags = fields
        tokens += length
        if (
            not 0.0 < temperature < _INFINITY
            or not length
            or start + length > limits.context
            or slot >= limits.slots
            or not 0 < top_k <= limits.max_top_k
            or top_k > limits.vocab
            or tokens > limits.max_step_tokens
            or mode > WANT_LIST
            or (flags > WHOLE_LOGITS and _are_wrong(flags, mode, length))
            or (listed > 0) is not (mode == WANT_LIST)
        ):
            raise _wrong_row(len(rows), fields, tokens, limits)
        want: tuple[int, ...] = (length - 1,) if mode == WANT_LAST else ()
        extra_ids: tuple[int, ...] = ()
        if listed:
            want, at = words[at : at + listed], at + listed
            _check_want(len(rows), want, listed, length)
        if extras:
            extra_ids, at = words[at : at + extras], at + extras
            _check_extra(len(rows), extra_ids, extras, limits)
        whole, skip_from, singly = flags & WHOLE_LOGITS > 0, flags >> 1 & MOST_SKIPPED_FROM, flags >= ONE_BY_ONE
        rows.append(Row(slot, start, length, want, top_k, extra_ids, temperature, whole, skip_from, singly))
    if at != len(words):
        raise ProtocolError(f"the rows' lists take {at} words, but {len(words)} came")
    if count > 1:
        _check_together(rows)
    return tuple(rows)


def _are_wrong(flags: int, mode: int, length: int) -> bool:
    """Whether flags ask for an answer of a row that a stage leaves out, or for one token to be taken one by one."""
    skipped = flags >> 1 & MOST_SKIPPED_FROM
    return (skipped > 0 and (mode != WANT_NONE or flags & WHOLE_LOGITS > 0)) or (flags >= ONE_BY_ONE and length == 1)


def _wrong_row(
    index: int, fields: tuple[float, int, int, int, int, int, int, int, int], tokens: int, limits: Limits
) -> ProtocolError:
    temperature, start, length, listed, slot, top_k, _, mode, flags = fields
    return ProtocolError(
        f"row {index}: slot {slot} of {limits.slots}, positions {start} + {length} of {limits.context}, "
        f"{tokens} tokens of {limits.max_step_tokens}, K {top_k} of {min(limits.max_top_k, limits.vocab)}, "
        f"temperature {temperature}, want mode {mode} with {listed} listed, flags {flags}: one is not allowed"
    )


def _check_want(index: int, want: tuple[int, ...], listed: int, length: int) -> None:
    if len(want) != listed or want[-1] >= length or any(a >= b for a, b in itertools.pairwise(want)):
        raise ProtocolError(f"row {index}: wanted positions are not ascending within its {length} tokens")


def _check_extra(index: int, extra_ids: tuple[int, ...], extras: int, limits: Limits) -> None:
    if extras > limits.max_extra_ids or len(extra_ids) != extras or max(extra_ids) >= limits.vocab:
        raise ProtocolError(
            f"row {index}: {extras} extra ids are more than {limits.max_extra_ids}, cut short, "
            f"or beyond the vocabulary of {limits.vocab}"
        )


def _check_together(rows: Sequence[Row]) -> None:
    if len({row.slot for row in rows}) != len(rows):
        raise ProtocolError("a slot appears in two rows of one frame")
    whole = [row.whole_logits for row in rows]
    if any(whole) and not all(whole):
        raise ProtocolError("some rows of one frame ask for whole logits and others do not")
