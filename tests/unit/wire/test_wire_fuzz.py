"""Hostile bytes of every kind raise ProtocolError or wait for more, and never cost more memory than the limits."""

import os
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlane.core import ElementType, Epoch, HeadId, Precision, Row, StageTiming
from hyperlane.errors import LinkClosed, ProtocolError, VersionMismatch
from hyperlane.wire import codec
from hyperlane.wire.frame import Copy, Fault, Frame, Hello, Kind, Role
from hyperlane.wire.hello import HELLO_BYTES, check_hello_header, encode_hello, read_hello
from hyperlane.wire.limits import Limits, Terms, payload_bytes
from hyperlane.wire.reader import FrameReader

FUZZ = int(os.environ.get("HYPERLANE_TEST_FUZZ", "1"))
"""`make fuzz` tries so many times as much."""

EPOCH = 5
LIMITS = Limits(
    max_rows=4, max_step_tokens=64, slots=4, context=256, vocab=300, token_bytes=8, max_extra_ids=16, max_timings=8,
    max_payload_bytes=1 << 16,
)  # fmt: skip
TERMS = Terms(EPOCH, LIMITS, frozenset({Kind.TOKENS, Kind.HIDDEN, Kind.CANDIDATES, Kind.LOGITS}))
ROWS = (Row(0, 3, 4, (1, 2), 5, (7, 8)), Row(2, 0, 1, (0,)), Row(1, 9, 2, skip_from=63, one_by_one=True))
WHOLE = (Row(3, 3, 4, (1, 3), whole_logits=True),)
TIMINGS = (StageTiming(0, 1, 2, 3, 4, 5), StageTiming(1, 1, 2, 3, 4, 5))


def step_frame(kind, rows):
    return Frame(kind, EPOCH, 9, rows, (bytes(payload_bytes(kind, rows, LIMITS)),), TIMINGS)


VALID = {
    kind: b"".join(bytes(buffer) for buffer in codec.encode(message))
    for kind, message in {
        "TOKENS": step_frame(Kind.TOKENS, ROWS),
        "HIDDEN": step_frame(Kind.HIDDEN, ROWS),
        "CANDIDATES": step_frame(Kind.CANDIDATES, ROWS),
        "LOGITS": step_frame(Kind.LOGITS, WHOLE),
        "COPY": Copy(EPOCH, 9, 0, 1, 20),
        "FAULT": Fault(EPOCH, 9, 1, "it broke"),
    }.items()
} | {"BYE": codec.bye(EPOCH)}

HELLO = encode_hello(
    Hello(Epoch(HeadId(bytes(16)), EPOCH), 0, Role.UPSTREAM, LIMITS, ElementType.F32, Precision.RAW, 2, "0.1.0")
)


class Eater:
    """Reads bytes to their end and remembers what it was asked to allocate."""

    def __init__(self):
        self.largest = 0
        self.messages = 0

    def place(self, frame):
        size = payload_bytes(frame.kind, frame.rows, LIMITS)
        self.largest = max(self.largest, size)
        return memoryview(bytearray(size))

    def eat(self, data):
        """True when the bytes were refused, False when they are a beginning of valid frames."""
        reader = FrameReader(TERMS)
        rest = memoryview(data)
        try:
            while True:
                if reader.next(self.place) is not None:
                    self.messages += 1
                    continue
                if not rest:
                    return False
                buffer = reader.buffer()
                count = min(len(buffer), len(rest))
                buffer[:count] = rest[:count]
                rest = rest[count:]
                reader.received(count)
        except (ProtocolError, LinkClosed):
            return True
        finally:
            assert self.largest <= LIMITS.max_payload_bytes


@given(st.binary(max_size=400))
@settings(max_examples=300 * FUZZ, deadline=None)
def test_random_bytes_raise_nothing_but_protocol_errors(data):
    Eater().eat(data)


@given(st.sampled_from(sorted(VALID)), st.binary(max_size=200))
@settings(max_examples=300 * FUZZ, deadline=None)
def test_a_valid_header_with_a_random_rest_raises_nothing_but_protocol_errors(name, rest):
    Eater().eat(VALID[name][: codec.HEADER.size] + rest)


def mutated(data, seed):
    """A frame with one to four bytes, or a span, changed, removed or repeated."""
    dice = random.Random(seed)
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(changed))
        way = dice.randrange(4)
        if way == 0:
            changed[at] = dice.randrange(256)
        elif way == 1:
            changed[at] ^= 1 << dice.randrange(8)
        elif way == 2 and len(changed) > 1:
            del changed[at : at + dice.randint(1, 9)]
            changed = changed or bytearray(1)
        else:
            changed[at:at] = changed[at : at + dice.randint(1, 9)]
    return bytes(changed)


@pytest.mark.parametrize("name", VALID)
def test_a_thousand_mutations_of_every_kind_are_survived(name):
    eater = Eater()
    for seed in range(1000 * FUZZ):
        eater.eat(mutated(VALID[name], seed))
    assert Eater().eat(VALID[name]) is (name == "BYE")  # the frame itself is sound


@pytest.mark.parametrize("name", VALID)
def test_every_single_bit_of_a_header_is_checked_or_harmless(name):
    for bit in range(8 * codec.HEADER.size):
        data = bytearray(VALID[name])
        data[bit // 8] ^= 1 << bit % 8
        refused = Eater().eat(bytes(data))
        magic_version_flags_epoch = bit // 8 < 5 or 6 <= bit // 8 < 16
        assert refused or not magic_version_flags_epoch


def test_a_thousand_hostile_headers_allocate_nothing():
    dice = random.Random(1)
    headers = []
    for _ in range(1000 * FUZZ):
        sizes = [dice.choice([0, 1, 1 << 16, (1 << 32) - 1, 1 << 40, (1 << 64) - 1]) for _ in range(4)]
        kind = dice.randrange(2, 8)
        lengths = sizes[0], sizes[1] & 0xFFFFFFFF, sizes[2] & 0xFFFF, sizes[3] & 0xFFFF
        headers.append(codec.HEADER.pack(codec.MAGIC, codec.PROTOCOL, kind, 0, EPOCH, 1, *lengths) + bytes(64))
    eater = Eater()
    tracemalloc.start()
    for header in headers:
        eater.eat(header)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert eater.largest <= LIMITS.max_payload_bytes
    assert peak < 1 << 20


@given(st.binary(min_size=HELLO_BYTES, max_size=HELLO_BYTES))
@settings(max_examples=200 * FUZZ, deadline=None)
def test_random_hellos_raise_nothing_but_protocol_errors(data):
    greet(data)
    greet(HELLO[: codec.HEADER.size] + data[codec.HEADER.size :])


def test_a_thousand_mutated_hellos_are_survived():
    outcomes = [greet(mutated(HELLO, seed).ljust(HELLO_BYTES, b"\0")[:HELLO_BYTES]) for seed in range(1000 * FUZZ)]
    assert not all(outcomes)
    assert greet(HELLO)


def greet(data):
    """Whether the bytes are a sound HELLO."""
    try:
        header = codec.read_header(data)
        check_hello_header(header)
        read_hello(header, data[codec.HEADER.size :])
    except (ProtocolError, VersionMismatch):
        return False
    return True
