"""The bytes of every kind of frame, as literals, and `docs/wire-format.md` held against the code."""

import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from hyperlane.core import ElementType, Epoch, HeadId, Precision, Row, StageTiming
from hyperlane.testing.packed import GOLDEN_BLOCKS
from hyperlane.wire import codec, hello, listener, probe_echo, probe_frame, rows, sockets, timings
from hyperlane.wire.frame import Copy, Fault, Frame, Hello, Kind, Role
from hyperlane.wire.limits import Limits, Terms
from hyperlane.wire.reader import FrameReader

DOC = (Path(__file__).parents[3] / "docs" / "wire-format.md").read_text(encoding="utf-8")

LIMITS = Limits(max_rows=4, max_step_tokens=512, slots=4, context=8192, vocab=49152, token_bytes=4)
TERMS = Terms(3, LIMITS, frozenset({Kind.TOKENS, Kind.HIDDEN}))

TWO_ROWS = (Row(0, 7, 1), Row(2, 0, 3, (0, 2), 8, (11, 12), 0.5))

GOLDEN = {
    "tokens": (
        Frame(Kind.TOKENS, 3, 258, (Row(1, 16, 2, (1,)),), (bytes([5, 0, 0, 0, 6, 0, 0, 0]),)),
        "4859504c02020000030000000000000002010000000000000800000000000000"
        "1c00000001000000000000000000f03f10000000020000000000000001004000"
        "000001000500000006000000",
    ),
    "hidden": (
        Frame(Kind.HIDDEN, 3, 259, TWO_ROWS, (bytes(range(16)),), (StageTiming(0, 1, 2, 3, 4, 5),)),
        "4859504c02030000030000000000000003010000000000001000000000000000"
        "4800000002000100000000000000f03f07000000010000000000000000004000"
        "00000000000000000000e03f0000000003000000020000000200080002000200"
        "00000000020000000b0000000c00000001000000000000000200000003000000"
        "040000000500000000000000000102030405060708090a0b0c0d0e0f",
    ),
    "replayed": (
        Frame(
            Kind.TOKENS,
            3,
            262,
            (Row(3, 40, 3, skip_from=2, one_by_one=True),),
            (bytes([7, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0]),),
        ),
        "4859504c02020000030000000000000006010000000000000c00000000000000"
        "1c00000001000000000000000000f03f28000000030000000000000003004000"
        "00000084070000000800000009000000",
    ),
    "copy": (
        Copy(3, 260, 1, 2, 64),
        "4859504c020600000300000000000000040100000000000000000000000000000c00000000000000010000000200000040000000",
    ),
    "fault": (
        Fault(3, 261, 1, "no memory"),
        "4859504c020700000300000000000000050100000000000000000000000000000d00000000000000010000006e6f206d656d6f7279",
    ),
}

BYE = "4859504c02080000030000000000000000000000000000000000000000000000" + "0000000000000000"

GOLDEN_HELLO = Hello(
    Epoch(HeadId(bytes(range(16))), 3),
    1,
    Role.UPSTREAM,
    Limits(4, 512, 4, 8192, 49152, 2304),
    ElementType.F32,
    Precision.RAW,
    576,
    "0.1.0",
)
HELLO = (
    "4859504c02010000030000000000000000000000000000000000000000000000"
    "6800000000000000000102030405060708090a0b0c0d0e0f0100010101000000"
    "400200000400000000020000040000000020000000c000000009000000010000"
    "00100000000100000000001000000000302e312e300000000000000000000000"
    "00000000000000000000000000000000"
)


@pytest.mark.parametrize("name", GOLDEN)
def test_messages_have_these_bytes(name):
    message, expected = GOLDEN[name]
    assert b"".join(codec.encode(message)).hex() == expected


@pytest.mark.parametrize("name", GOLDEN)
def test_these_bytes_are_read_back(name):
    message, data = GOLDEN[name]
    reader = FrameReader(TERMS)
    reader.buffer()[: len(data) // 2] = bytes.fromhex(data)
    reader.received(len(data) // 2)
    got = reader.next(lambda frame: memoryview(bytearray(4 * sum(row.count for row in frame.rows))))
    if isinstance(message, Frame):
        assert isinstance(got, Frame)
        assert [bytes(buffer) for buffer in got.payload] == list(message.payload)
        got = Frame(got.kind, got.epoch, got.step, got.rows, message.payload, got.timings)
    assert got == message


def test_bye_has_these_bytes():
    assert codec.bye(3).hex() == BYE


def test_hello_has_these_bytes_and_is_read_back():
    data = hello.encode_hello(GOLDEN_HELLO)
    assert data.hex() == HELLO
    header = codec.read_header(data)
    hello.check_hello_header(header)
    assert hello.read_hello(header, data[codec.HEADER.size :]) == GOLDEN_HELLO


PROBE_HELLO = (
    "4859504c02010000000000000000000000000000000000000000000000000000"
    "6800000000000000000102030405060708090a0b0c0d0e0f0000030101000000"
    "0100000001000000010000000100000001000000010000000400000000010000"
    "00100000000100000000010000000000302e312e300000000000000000000000"
    "00000000000000000000000000000000"
)
PROBE = "4859504c02090000000000000000000007000000000000000300000000000000040000000000000040000000000000"


def test_a_probe_has_these_bytes_and_is_read_back():
    probe = probe_frame.Probe(step=7, payload_bytes=3, answer_bytes=64)
    assert probe_frame.encode_probe(probe).hex() == PROBE
    assert probe_frame.read_probe(bytes.fromhex(PROBE)) == probe


def test_a_probes_hello_is_of_no_stage():
    data = hello.encode_hello(replace(probe_frame.probe_hello(HeadId(bytes(range(16)))), version="0.1.0"))
    assert data.hex() == PROBE_HELLO


# --- the page ----------------------------------------------------------------------------------------------------

TYPES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "f64": "d"}


def layouts():
    """Every table of offsets and types: (title of its section, list of (offset, struct code, field))."""
    for section in DOC.split("\n## ")[1:]:
        title = section.splitlines()[0]
        fields = []
        for line in section.splitlines():
            found = re.match(r"\| (\d+) \| (char\[(\d+)\]|u8|u16|u32|u64|f64) \| ([\w ]+) \|", line)
            if found:
                code = f"{found[3]}s" if found[3] else TYPES[found[2]]
                fields.append((int(found[1]), code, found[4]))
        if fields:
            yield title, fields


LAYOUTS = dict(layouts())
STRUCTS = {
    "Header": codec.HEADER,
    "Rows": rows.ROW,
    "Timing records": timings.TIMING,
    "COPY": codec.COPY,
    "FAULT": codec.FAULT,
    "HELLO": hello.HELLO,
    "PROBE": probe_frame.BODY,
}


def test_page_has_a_table_for_every_structure():
    assert set(LAYOUTS) == set(STRUCTS)


@pytest.mark.parametrize("title", STRUCTS)
def test_tables_are_the_structures(title):
    codes = [code for _, code, _ in LAYOUTS[title]]
    packed = struct.Struct("<" + "".join(codes))
    expanded = re.sub(r"(\d+)([A-Z])", lambda m: m[2] * int(m[1]), STRUCTS[title].format)
    assert packed.format == expanded
    offsets = [struct.calcsize("<" + "".join(codes[:index])) for index in range(len(codes))]
    assert [offset for offset, _, _ in LAYOUTS[title]] == offsets


def test_page_names_the_header_and_limit_fields_as_the_code_does():
    assert [field.replace(" ", "_") for _, _, field in LAYOUTS["Header"]] == list(codec.Header._fields)
    limits = [field.replace(" ", "_") for _, _, field in LAYOUTS["HELLO"]][7:-1]
    assert limits == [name for name in Limits.__dataclass_fields__]


def test_page_numbers_the_kinds_as_the_code_does():
    told = {name: int(number) for name, number in re.findall(r"^\| ([A-Z]+) \| (\d) \|", DOC, re.M)}
    assert told == {kind.name: int(kind) for kind in Kind}


def test_page_states_the_numbers_of_the_code():
    for text in (
        f"Protocol version **{codec.PROTOCOL}**",
        f"a **header** of {codec.HEADER.size} bytes",
        f"**timing records** of {timings.TIMING.size} bytes",
        f"{rows.ROW.size} × max rows + 4 × max rows",
        f"always {hello.HELLO.size} bytes",
        f"at most {hello.HELLO_BYTES} bytes",
        f"up to {codec.MAX_CAUSE_BYTES} bytes of UTF-8",
        f"within {listener.HELLO_WITHIN_S:g} seconds",
        f"more than {listener.MAX_UNFINISHED} such connections",
        f"for {sockets.SILENCE_S:g} seconds",
        f"at most {probe_frame.MAX_PAYLOAD_BYTES:,} bytes",
        f"at most {probe_echo.WITHIN_S:g} seconds, and closes one that is silent for {probe_echo.SILENCE_S:g}",
    ):
        assert text in re.sub(r"\s+", " ", DOC), text


def test_examples_of_the_page_are_the_golden_bytes():
    examples = [re.sub(r"\s", "", block) for block in re.findall(r"```\n([0-9a-f\n]+)```", DOC)]
    assert examples == [*[data for _, data in GOLDEN.values()], *GOLDEN_BLOCKS.values(), BYE, HELLO, PROBE_HELLO, PROBE]
