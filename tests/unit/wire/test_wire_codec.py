"""Any valid message survives the wire in any pieces; every field out of its range is refused by name."""

import dataclasses
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlane.core import Row, StageTiming
from hyperlane.errors import LinkClosed, ProtocolError
from hyperlane.wire import codec
from hyperlane.wire.frame import Copy, Fault, Frame, Kind, pass_on
from hyperlane.wire.limits import Limits, Terms, payload_bytes
from hyperlane.wire.reader import FrameReader, place_afresh
from hyperlane.wire.rows import MOST_SKIPPED_FROM, rows_size
from hyperlane.wire.timings import PassedTiming

EPOCH = (1 << 64) - 2
LIMITS = Limits(
    max_rows=5, max_step_tokens=40, slots=6, context=100, vocab=70, token_bytes=6, max_top_k=66, max_extra_ids=7
)
KINDS = (Kind.TOKENS, Kind.HIDDEN, Kind.CANDIDATES, Kind.LOGITS)
TERMS = Terms(EPOCH, LIMITS, frozenset(KINDS))

U32 = st.integers(0, (1 << 32) - 1)
STEPS = st.integers(0, (1 << 64) - 1)
TIMINGS = st.builds(StageTiming, U32, STEPS, U32, U32, U32, U32)
CAUSES = st.text(st.characters(categories=["L", "N", "P", "S"], include_characters=" "), max_size=200)


@st.composite
def rows(draw):
    slots = draw(st.lists(st.integers(0, LIMITS.slots - 1), unique=True, max_size=LIMITS.max_rows))
    whole = draw(st.booleans())
    said = []
    for slot in slots:
        count = draw(st.integers(1, LIMITS.max_step_tokens // LIMITS.max_rows))
        want = tuple(sorted(draw(st.sets(st.integers(0, count - 1)))))
        said.append(
            Row(
                slot,
                draw(st.integers(0, LIMITS.context - count)),
                count,
                want,
                draw(st.integers(1, LIMITS.max_top_k)),
                tuple(draw(st.lists(st.integers(0, LIMITS.vocab - 1), max_size=LIMITS.max_extra_ids))),
                draw(st.floats(0, exclude_min=True, allow_infinity=False)),
                whole,
                0 if want or whole else draw(st.integers(0, MOST_SKIPPED_FROM)),
            )
        )
    return tuple(said)


@st.composite
def frames(draw):
    said = draw(rows())
    answer = Kind.LOGITS if said and said[0].whole_logits else Kind.CANDIDATES
    kind = draw(st.sampled_from([Kind.TOKENS, Kind.HIDDEN, answer]))
    size = payload_bytes(kind, said, LIMITS)
    content = draw(st.binary(min_size=min(size, 8), max_size=8)).ljust(8, b"?") * (size // 8 + 1)
    cut = draw(st.integers(0, size))
    timings = tuple(draw(st.lists(TIMINGS, max_size=3)))
    return Frame(kind, EPOCH, draw(STEPS), said, (content[:cut], memoryview(content)[cut:size]), timings)


SLOTS = st.permutations(range(LIMITS.slots))
COPIES = st.builds(lambda step, slots, n: Copy(EPOCH, step, slots[0], slots[1], n), STEPS, SLOTS, st.integers(1, 100))
FAULTS = st.builds(lambda step, stage, cause: Fault(EPOCH, step, stage, cause), STEPS, U32, CAUSES)
MESSAGES = st.one_of(frames(), COPIES, FAULTS)


def joined(message):
    return b"".join(bytes(buffer) for buffer in codec.encode(message))


def feed(reader, data, sizes, place):
    """Give bytes in pieces of these sizes, and rehearse before each; yield what comes out."""
    rest = memoryview(data)
    turn = 0
    while True:
        message = reader.next(place)
        if message is not None:
            yield message
            continue
        if not rest:
            return
        reader.expect()
        reader.rehearse(place)
        buffer = reader.buffer()
        assert len(buffer) > 0
        count = min(len(buffer), len(rest), sizes[turn % len(sizes)])
        turn += 1
        buffer[:count] = rest[:count]
        rest = rest[count:]
        reader.received(count)


def value(message):
    """A message as something that can be compared: a frame with its payload's bytes."""
    if not isinstance(message, Frame):
        return message
    return dataclasses.replace(message, payload=(b"".join(bytes(buffer) for buffer in message.payload),))


@given(st.lists(MESSAGES, max_size=4), st.lists(st.integers(1, 200), min_size=1, max_size=5), st.integers(1, 300))
@settings(max_examples=300, deadline=None)
def test_messages_survive_in_any_pieces(messages, sizes, staging):
    data = b"".join(map(joined, messages))
    got = list(feed(FrameReader(TERMS, 40 + staging), data, sizes, place_afresh(TERMS)))
    assert [value(one) for one in got] == [value(one) for one in messages]


@given(st.lists(MESSAGES, max_size=6), st.integers(1, 300))
@settings(max_examples=300, deadline=None)
def test_a_rehearsal_after_any_message_disturbs_nothing(messages, staging):
    reader = FrameReader(TERMS, 40 + staging)
    for message in messages:
        (got,) = feed(reader, joined(message), [1 << 20], place_afresh(TERMS))
        reader.rehearse(place_afresh(TERMS))
        assert value(got) == value(message)


@given(frames(), TIMINGS)
@settings(max_examples=100, deadline=None)
def test_frame_passed_on_is_the_same_with_and_without_its_packed_rows(frame, timing):
    (got,) = feed(FrameReader(TERMS), joined(frame), [1 << 20], place_afresh(TERMS))
    payload = (b"abc", b"defg")
    passed = pass_on(got, Kind.HIDDEN, payload, timing)
    assert passed.packed is not None
    assert joined(passed) == joined(dataclasses.replace(passed, packed=None))


@given(frames(), TIMINGS)
@settings(max_examples=100, deadline=None)
def test_frame_passed_on_at_once_has_the_same_bytes_and_says_how_many(frame, said):
    (got,) = feed(FrameReader(TERMS), joined(frame), [1 << 20], place_afresh(TERMS))
    payload = (b"abc", b"defg")
    timing = PassedTiming(said.stage, said.waited_us, said.computed_us, said.overhead_us, said.previous_send_us)
    at_once = joined(codec.encode_passed_on(got, Kind.HIDDEN, payload, timing))
    assert at_once == joined(pass_on(got, Kind.HIDDEN, payload, dataclasses.replace(said, sent_bytes=len(at_once))))


def decode_frame(step, start, extra_ids=(), slots=2):
    rows = tuple(Row(slot, start + slot, 1, (0,), 3, extra_ids, 0.7) for slot in range(slots))
    payload = bytes(range(TERMS.limits.token_bytes)) * slots
    return Frame(Kind.HIDDEN, EPOCH, step, rows, (payload,), (StageTiming(0, step, 2, 3, 4, 5),))


@given(st.integers(1, 1 << 62), st.lists(st.integers(1, 4096), max_size=9), st.booleans())
def test_expected_frame_is_the_one_that_comes(step, pieces, whole):
    """Steps one after the other, a link that looks ahead after each, bytes in any pieces."""
    reader, place = FrameReader(TERMS), place_afresh(TERMS)
    for at in range(4):
        sent = decode_frame(step + at, 7 + at, (1, 2, 3))
        (got,) = feed(reader, joined(sent), [1 << 20] if whole else [*pieces, 1 << 20], place)
        assert value(got) == value(sent)
        reader.expect()
        reader.rehearse(place)


@pytest.mark.parametrize(
    "other",
    [
        decode_frame(10, 8),
        decode_frame(9, 9),
        decode_frame(9, 8, (5,)),
        decode_frame(9, 8, slots=1),
        Copy(EPOCH, 9, 0, 1, 3),
        Fault(EPOCH, 9, 0, "broken"),
    ],
)
def test_another_frame_than_expected_is_read_as_it_is(other):
    reader, place = FrameReader(TERMS), place_afresh(TERMS)
    list(feed(reader, joined(decode_frame(8, 7)), [1 << 20], place))
    reader.expect()
    (got,) = feed(reader, joined(other), [1 << 20], place)
    assert value(got) == value(other)


def test_nothing_is_expected_that_the_limits_forbid():
    """The last position of the context: the frame one step later would be refused, and is."""
    reader, place, last = FrameReader(TERMS), place_afresh(TERMS), TERMS.limits.context - 2
    list(feed(reader, joined(decode_frame(8, last)), [1 << 20], place))
    reader.expect()
    with pytest.raises(ProtocolError, match="positions"):
        list(feed(reader, joined(decode_frame(9, last + 1)), [1 << 20], place))


@given(rows())
@settings(max_examples=100, deadline=None)
def test_size_of_rows_is_that_of_their_bytes(said):
    frame = Frame(Kind.TOKENS, EPOCH, 1, said)
    assert len(codec.encode(frame)[0]) == codec.HEADER.size + rows_size(said)


def test_packed_rows_of_other_rows_are_not_used():
    first = Frame(Kind.HIDDEN, EPOCH, 1, (Row(0, 0, 1),), (bytes(6),))
    (got,) = feed(FrameReader(TERMS), joined(first), [1 << 20], place_afresh(TERMS))
    other = dataclasses.replace(got, rows=(Row(1, 5, 1),))
    assert joined(other) == joined(dataclasses.replace(first, rows=(Row(1, 5, 1),)))


def test_payload_of_any_item_size_is_counted_in_bytes():
    frame = Frame(Kind.HIDDEN, EPOCH, 1, (Row(0, 0, 2),), (memoryview(bytes(12)).cast("f"),))
    (got,) = feed(FrameReader(TERMS), joined(frame), [64], lambda frame: memoryview(bytearray(12)).cast("f"))
    assert [buffer.nbytes for buffer in got.payload] == [12]


def test_bye_ends_the_messages():
    reader = FrameReader(TERMS)
    with pytest.raises(LinkClosed, match="BYE"):
        list(feed(reader, codec.bye(EPOCH), [7], place_afresh(TERMS)))


def test_cause_is_one_bounded_printable_line():
    cause = "line one\nline two \x1b[31m red \udc80 " + "ö" * 2000
    (got,) = feed(FrameReader(TERMS), joined(Fault(EPOCH, 1, 0, cause)), [99], place_afresh(TERMS))
    assert got.cause.startswith("line one line two  [31m red ")
    assert len(got.cause.encode()) <= codec.MAX_CAUSE_BYTES
    assert got.cause.isprintable()


# --- what is refused ---------------------------------------------------------------------------------------------


def test_rows_that_a_stage_leaves_out_bring_it_no_payload():
    said = (Row(0, 0, 2, (1,)), Row(1, 0, 3, skip_from=2), Row(2, 0, 1, skip_from=1))
    sizes = [payload_bytes(Kind.HIDDEN, said, LIMITS, stage) // LIMITS.token_bytes for stage in (1, 2, 3)]
    assert sizes == [5, 2, 2]
    assert payload_bytes(Kind.TOKENS, said, LIMITS) == 4 * 6
    for stage, size in zip((1, 2), sizes, strict=False):
        frame = Frame(Kind.HIDDEN, EPOCH, 1, said, (bytes(size * LIMITS.token_bytes),))
        terms = dataclasses.replace(TERMS, stage=stage)
        assert [got.rows for got in feed(FrameReader(terms), joined(frame), [1 << 20], place_afresh(terms))] == [said]
        with pytest.raises(ProtocolError, match="where the rows make"):
            list(feed(FrameReader(TERMS), joined(frame), [1 << 20], place_afresh(TERMS)))


GOOD = Row(0, 10, 5, (1, 3), 8, (2, 4), 1.0)

BAD_ROWS = {
    "slot": (dataclasses.replace(GOOD, slot=6),),
    "no tokens": (Row(0, 10, 0),),
    "context": (dataclasses.replace(GOOD, start=96),),
    "context wraps": (dataclasses.replace(GOOD, start=(1 << 32) - 1),),
    "step tokens": (Row(0, 0, 30), Row(1, 0, 11)),
    "k of zero": (dataclasses.replace(GOOD, top_k=0),),
    "k over the limit": (dataclasses.replace(GOOD, top_k=67),),
    "want beyond count": (dataclasses.replace(GOOD, want=(1, 5)),),
    "want not ascending": (dataclasses.replace(GOOD, want=(3, 1)),),
    "want twice": (dataclasses.replace(GOOD, want=(1, 1)),),
    "extra id": (dataclasses.replace(GOOD, extra_ids=(70,)),),
    "extra ids": (dataclasses.replace(GOOD, extra_ids=(1,) * 8),),
    "temperature zero": (dataclasses.replace(GOOD, temperature=0.0),),
    "temperature negative": (dataclasses.replace(GOOD, temperature=-1.0),),
    "temperature nan": (dataclasses.replace(GOOD, temperature=float("nan")),),
    "temperature inf": (dataclasses.replace(GOOD, temperature=float("inf")),),
    "slot twice": (GOOD, GOOD),
    "skipped and wanted": (dataclasses.replace(GOOD, skip_from=1),),
    "skipped and whole": (Row(0, 0, 1, whole_logits=True, skip_from=3),),
    "skipped, one by one and wanted": (dataclasses.replace(GOOD, skip_from=1, one_by_one=True),),
    "one token one by one": (Row(0, 10, 1, one_by_one=True),),
    "whole and not": (GOOD, Row(1, 0, 1, whole_logits=True)),
}


def never(frame):
    raise AssertionError(f"place was asked for {frame}")


@pytest.mark.parametrize("name", BAD_ROWS)
def test_row_out_of_range_is_refused(name):
    said = BAD_ROWS[name]
    size = 4 * sum(row.count for row in said)
    data = joined(Frame(Kind.TOKENS, EPOCH, 1, said, (bytes(size),)))
    with pytest.raises(ProtocolError):
        list(feed(FrameReader(TERMS), data, [1 << 20], never))


def test_k_beyond_a_small_vocabulary_is_refused():
    limits = dataclasses.replace(LIMITS, vocab=10)
    frame = Frame(Kind.TOKENS, EPOCH, 1, (Row(0, 0, 1, top_k=11),), (bytes(4),))
    with pytest.raises(ProtocolError, match="K 11 of 10"):
        list(feed(FrameReader(Terms(EPOCH, limits, frozenset(KINDS))), joined(frame), [1 << 20], never))


@pytest.mark.parametrize(
    ("kind", "whole"), [(Kind.CANDIDATES, True), (Kind.LOGITS, False)], ids=["candidates", "logits"]
)
def test_answer_of_the_other_kind_is_refused(kind, whole):
    said = (Row(0, 0, 1, (0,), 8, whole_logits=whole),)
    size = 4 * (LIMITS.vocab if whole else 18)
    with pytest.raises(ProtocolError, match="other kind of answer"):
        list(feed(FrameReader(TERMS), joined(Frame(kind, EPOCH, 1, said, (bytes(size),))), [1 << 20], never))


def with_row_bytes(offset, code, number):
    """A frame of `GOOD` with one number of its row's fixed part overwritten."""
    data = bytearray(joined(Frame(Kind.TOKENS, EPOCH, 1, (GOOD,), (bytes(20),))))
    struct.pack_into("<" + code, data, codec.HEADER.size + offset, number)
    return bytes(data)


@pytest.mark.parametrize(
    ("offset", "code", "number"),
    [(16, "I", 0), (16, "I", 3), (16, "I", (1 << 32) - 1), (24, "H", 3), (24, "H", 65535), (26, "B", 3), (26, "B", 0),
     (26, "B", 1), (27, "B", 2), (27, "B", 130)],
)  # fmt: skip
def test_row_whose_lists_or_flags_do_not_add_up_is_refused(offset, code, number):
    with pytest.raises(ProtocolError):
        list(feed(FrameReader(TERMS), with_row_bytes(offset, code, number), [1 << 20], never))


@pytest.mark.parametrize(
    "copy", [(0, 6, 1), (6, 0, 1), (1, 1, 1), (0, 1, 0), (0, 1, 101)], ids=["to", "from", "self", "none", "beyond"]
)
def test_copy_out_of_range_is_refused(copy):
    with pytest.raises(ProtocolError, match="COPY"):
        list(feed(FrameReader(TERMS), joined(Copy(EPOCH, 1, *copy)), [1 << 20], never))


@pytest.mark.parametrize("cause", [b"\xff\xfe", b"two\nlines", b"\x1b[2J"])
def test_cause_that_is_not_printable_text_is_refused(cause):
    data = codec.plain(Kind.FAULT, EPOCH, 1, codec.FAULT.pack(0) + cause)
    with pytest.raises(ProtocolError, match="cause"):
        list(feed(FrameReader(TERMS), data, [1 << 20], never))


def test_number_too_large_for_its_field_cannot_be_sent():
    with pytest.raises(struct.error):
        codec.encode(Frame(Kind.TOKENS, EPOCH, 1, (Row(1 << 16, 0, 1),)))
