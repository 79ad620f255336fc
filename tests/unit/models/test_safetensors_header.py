"""The header of a safetensors file: what the real library writes is read, and what lies is refused."""

from __future__ import annotations

import json
import os
import random
import struct

import numpy as np
import pytest
import safetensors.numpy

from hyperlane.errors import MalformedModel, ModelError, UnsupportedModel
from hyperlane.models.safetensors_header import MAX_JSON_BYTES, StoredTensor, header_bytes, read_header


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read(file: bytes, size: int | None = None):
    size = len(file) if size is None else size
    return read_header(file[: header_bytes(file, size, "m")], size, "m")


def entry(begin: int, end: int, dtype: object = "F16", shape: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 2] if shape is None else shape, "data_offsets": [begin, end]}


def test_what_the_library_writes_is_read():
    tensors = {
        "b": np.arange(6, dtype=np.float16).reshape(2, 3),
        "a": np.array([1.5, -2.0], np.float32),
        "c": np.array(7, np.int64),
    }
    file = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    found = read(file)
    assert {name: (one.dtype, one.shape) for name, one in found.items()} == {
        "a": ("F32", (2,)),
        "b": ("F16", (2, 3)),
        "c": ("I64", ()),
    }
    for name, one in found.items():
        assert file[one.offset : one.offset + one.nbytes] == tensors[name].tobytes()


def test_a_golden_file_is_read():
    file = file_of(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}   ', b"\0\0\x80?")
    assert dict(read(file)) == {"w": StoredTensor("w", "F32", (1,), 65, 4)}


def test_only_the_header_is_needed_of_a_file_that_lies_elsewhere():
    file = file_of({"w": entry(0, 1 << 40)})
    length = header_bytes(file[:8], len(file) + (1 << 40), "m")
    assert length == len(file)
    assert read(file, len(file) + (1 << 40))["w"].nbytes == 1 << 40


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"w": entry(0, 4)}, b"xx", r"'w' is meant to end at byte \d+, the file has \d+; is it truncated"),
        ({"w": entry(0, 4), "v": entry(2, 6)}, b"x" * 6, "'v' overlaps tensor 'w'"),
        ({"w": entry(0, 4), "v": entry(0, 4)}, b"x" * 4, "overlaps"),
        ({"w": entry(2, 4)}, b"x" * 4, "2 bytes between the header and tensor 'w' belong to nothing"),
        ({"w": entry(0, 2)}, b"x" * 4, "2 bytes behind tensor 'w' belong to nothing"),
        ({"w": entry(0, 4, shape=[3])}, b"x" * 4, "needs 6 bytes"),
        ({"w": entry(4, 0, shape=[2])}, b"x" * 4, "needs 4 bytes"),
        ({"w": entry(0, 4, shape=[1 << 62, 4])}, b"x" * 4, "needs"),
        ({"w": entry(0, 4, shape=[1 << 70])}, b"x" * 4, "no shape"),
        ({"w": entry(0, 4, shape=[-2])}, b"x" * 4, "no shape"),
        ({"w": entry(0, 4, shape=[2.0])}, b"x" * 4, "no shape"),
        ({"w": entry(0, 4, shape=[1] * 9)}, b"x" * 4, "no shape of at most 8"),
        ({"w": {"dtype": "F16", "shape": [2]}}, b"x" * 4, "does not say where"),
        ({"w": {"dtype": "F16", "shape": [2], "data_offsets": [0, True]}}, b"x", "does not say where"),
        ({"w": entry(0, 4, dtype=7)}, b"x" * 4, "has no type"),
        ({"w": 5}, b"", "not described by an object"),
        ({"w" * 600: entry(0, 4)}, b"x" * 4, "600 characters"),
        ([], b"", "no JSON object"),
        (b"{", b"", "not JSON"),
        (b"\xff{}", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
        (b'{"w": {}, "w": {}}', b"", "the key 'w' twice"),
        (b'{"w": ' + b"9" * 5000 + b"}", b"", "not JSON"),
    ],
)
def test_a_header_that_lies_is_refused(header, data, words):
    with pytest.raises(MalformedModel, match=words) as caught:
        read(file_of(header, data))
    assert str(caught.value).startswith("m: ")


def test_a_type_of_the_future_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match="'F3'"):
        read(file_of({"w": entry(0, 4, dtype="F3")}, b"x" * 4))


@pytest.mark.parametrize("file", [b"", b"1234567"])
def test_a_file_without_a_length_is_refused(file):
    with pytest.raises(MalformedModel, match="truncated"):
        header_bytes(file, len(file), "m")


def test_a_header_longer_than_allowed_or_than_the_file_is_refused_before_it_is_read():
    with pytest.raises(MalformedModel, match=f"{MAX_JSON_BYTES} are allowed"):
        header_bytes(struct.pack("<Q", MAX_JSON_BYTES + 1), 1 << 60, "m")
    with pytest.raises(MalformedModel, match="truncated"):
        header_bytes(struct.pack("<Q", 100), 50, "m")


def test_no_change_of_a_byte_gets_past_the_errors_that_are_promised():
    whole = file_of({"__metadata__": {"a": "b"}, "v": entry(0, 8), "w": entry(8, 12)}, bytes(12))
    chance = random.Random(1)
    for _ in range(3000 * int(os.environ.get("HYPERLANE_TEST_FUZZ", "1"))):
        file = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            file[chance.randrange(len(file))] = chance.choice((0, 0x22, 0x2C, 0x30, 0x39, 0x5D, 0x7D, 0xFF))
        try:
            for one in read(bytes(file)).values():
                assert 0 <= one.offset <= one.offset + one.nbytes <= len(file)
        except ModelError:
            pass
