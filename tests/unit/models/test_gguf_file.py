import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from hyperlane.errors import MalformedModel, ModelError, UnknownModel, UnsupportedModel
from hyperlane.models.digests import DigestCache
from hyperlane.models.gguf_file import GgufFile
from hyperlane.models.gguf_header import GgufHeader
from hyperlane.models.gguf_values import IncompleteHeader
from hyperlane.models.mapping import MappedFile
from hyperlane.models.weights import TensorInfo, TensorSource
from hyperlane.testing.tiny_models import byte_words, write_tiny_model


def string(text: bytes | str) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def header(*parts: bytes, keys: int = 0, tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, *items: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + b"".join(items)


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


Open = Callable[[bytes], GgufFile]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def write_and_open(raw: bytes) -> GgufFile:
        path = tmp_path / "model.gguf"
        path.write_bytes(raw)
        return GgufFile(path)

    return write_and_open


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


def test_metadata_is_read_by_type(tiny: Path):
    with GgufFile(tiny) as file:
        assert file.string("general.architecture") == "llama"
        assert file.integer("llama.block_count") == 4
        assert file.floating("llama.rope.freq_base") == 10_000.0
        assert file.floating("llama.block_count") == 4.0
        assert file.boolean("tokenizer.ggml.add_bos_token") is False
        assert file.strings("tokenizer.ggml.tokens")[3:259] == byte_words()
        assert file.integers("tokenizer.ggml.token_type")[:4] == [3, 3, 3, 1]
        assert file.count("tokenizer.ggml.tokens") == 271
        assert file.is_array("tokenizer.ggml.tokens")
        assert not file.is_array("llama.block_count")
        assert file.keys()[0] == "general.architecture"


@pytest.mark.parametrize("ask", ["string", "integer", "floating", "boolean", "strings", "integers", "floats", "count"])
def test_an_absent_key_is_none(tiny: Path, ask: str):
    with GgufFile(tiny) as file:
        assert getattr(file, ask)("no.such.key") is None


@pytest.mark.parametrize(
    ("ask", "key"),
    [
        ("string", "llama.block_count"),
        ("integer", "general.name"),
        ("integer", "llama.rope.freq_base"),
        ("floating", "tokenizer.ggml.tokens"),
        ("boolean", "llama.block_count"),
        ("strings", "general.name"),
        ("strings", "tokenizer.ggml.token_type"),
        ("integers", "llama.block_count"),
        ("floats", "tokenizer.ggml.tokens"),
        ("count", "general.name"),
    ],
)
def test_a_value_of_another_type_is_malformed(tiny: Path, ask: str, key: str):
    with GgufFile(tiny) as file, pytest.raises(MalformedModel, match=f"tiny.gguf: '{key}'"):
        getattr(file, ask)(key)


def test_every_scalar_and_array_type_is_read(opened: Open):
    scalars = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"}
    parts = [pair(f"int.{kind}", kind, struct.pack("<" + code, 7)) for kind, code in scalars.items()]
    parts += [pair(f"ints.{kind}", 9, array(kind, 2, struct.pack("<2" + code, 1, 2))) for kind, code in scalars.items()]
    parts += [pair("float.6", 6, struct.pack("<f", 0.5)), pair("float.12", 12, struct.pack("<d", -2.5))]
    parts += [pair("floats", 9, array(6, 2, struct.pack("<2f", 0.5, 1.5))), pair("flags", 9, array(7, 3, b"\1\0\1"))]
    file = opened(header(*parts, keys=len(parts)))
    assert {file.integer(f"int.{kind}") for kind in scalars} == {7}
    assert all(file.integers(f"ints.{kind}") == [1, 2] for kind in scalars)
    assert (file.floating("float.6"), file.floating("float.12")) == (0.5, -2.5)
    assert (file.floats("floats"), file.floats("ints.4"), file.integers("flags")) == ([0.5, 1.5], [1.0, 2.0], [1, 0, 1])


def test_tensors_are_views_of_the_file_in_row_major_shape(tmp_path: Path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("matrix", values)
    writer.add_tensor("vector", values[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile(tmp_path / "model.gguf") as file:
        source: TensorSource = file
        assert source.names() == ("matrix", "vector")
        assert source.info("matrix") == TensorInfo("matrix", (3, 4), "F32", 48)
        assert source.info("absent") is None
        raw = source.read("matrix")
        assert not raw.flags.writeable
        assert not raw.flags.owndata
        with pytest.raises(MalformedModel, match="no tensor 'absent'"):
            source.read("absent")
    assert np.array_equal(raw.view(np.float32).reshape(3, 4), values)  # outlives the file object


def test_closing_twice_is_fine(tiny: Path):
    file = GgufFile(tiny)
    file.close()
    file.close()


def test_a_version_2_file_and_another_alignment_are_read(opened: Open):
    head = header(pair("general.alignment", 4, struct.pack("<I", 64)), tensor("x", (2,)), keys=1, tensors=1, version=2)
    file = opened(head.ljust(128, b"\0") + struct.pack("<2f", 1.0, 2.0))
    assert file.read("x").view(np.float32).tolist() == [1.0, 2.0]


def padded(*parts: bytes, data: int = 64, **counts: int) -> bytes:
    head = header(*parts, **counts)
    return head + bytes(-len(head) % 32 + data)


HUGE = 1 << 63
MALFORMED = {
    "is empty": b"",
    "magic number needs 4 bytes": b"GG",
    "not a GGUF file": b"PK\3\4" + bytes(60),
    "version needs 4 bytes": b"GGUF\3",
    "tensor count needs 8 bytes": b"GGUF\3\0\0\0\0",
    f"claims {HUGE} tensors": header(tensors=HUGE),
    f"claims {HUGE} metadata keys": header(keys=HUGE),
    "metadata key 0's length needs 8 bytes": header(keys=1),
    "metadata key 0 has 65536 bytes": header(struct.pack("<Q", 65_536), keys=1),
    "metadata key 0 needs 50 bytes, the file has 3 left": header(struct.pack("<Q", 50), b"abc", keys=1),
    "metadata key 0 is not UTF-8": header(string(b"\xff"), keys=1),
    "'k's type needs 4 bytes": header(string("k"), keys=1),
    "unknown value type 13": header(pair("k", 13, b""), keys=1),
    "'k' needs 8 bytes": header(pair("k", 10, b"abc"), keys=1),
    "the strings of 'k' reach beyond": header(pair("k", 8, struct.pack("<Q", HUGE)), keys=1),
    "the strings of 'a' reach beyond": header(pair("a", 9, array(8, 3, string("x"))), keys=1),
    "array 'k' needs 32 bytes": header(pair("k", 9, array(4, 8)), keys=1),
    "'k' claims 8388609 items": header(pair("k", 9, array(0, 8_388_609)), keys=1),
    "key 'k' is there twice": header(pair("k", 0, b"\1"), pair("k", 0, b"\2"), keys=2),
    "general.alignment' is 0": header(pair("general.alignment", 4, bytes(4)), keys=1),
    "general.alignment' is 48": header(pair("general.alignment", 4, b"\x30\0\0\0"), keys=1),
    "general.alignment' is an integer": header(pair("general.alignment", 8, string("32")), keys=1),
    "tensor's name has 128 bytes": header(struct.pack("<Q", 128), tensors=1),
    "tensor's name is not UTF-8": header(string(b"\xc3"), tensors=1),
    "'x' has 0 dimensions": padded(tensor("x", ()), tensors=1),
    "'x' has 5 dimensions": padded(tensor("x", (1, 1, 1, 1, 1)), tensors=1),
    "'x' of shape (0,) is empty": padded(tensor("x", (0,)), tensors=1),
    "rows of 33 values, not a multiple of Q4_0's block": padded(tensor("x", (33,), kind=2), tensors=1),
    "'x' is meant to lie at bytes 0 to 68 of the data, the file has 64": padded(tensor("x", (17,)), tensors=1),
    "'w' is meant to lie": padded(tensor("w", (1 << 62, 1 << 62, 1 << 62, 1 << 62)), tensors=1),
    "'v' is meant to lie": padded(tensor("v", (1,), offset=HUGE), tensors=1),
    "'u' is at offset 4, no multiple of 32": padded(tensor("u", (1,), offset=4), tensors=1),
    "'x' at offset 0 overlaps 'y'": padded(tensor("y", (1,)), tensor("x", (1,)), tensors=2),
    "two tensors are called 'x'": padded(tensor("x", (1,)), tensor("x", (1,), offset=32), tensors=2),
    "'t' is meant to lie at bytes 0 to 4 of the data, the file has 0": header(tensor("t", (1,)), tensors=1),
}


@pytest.mark.parametrize("message", MALFORMED)
def test_a_hostile_file_is_refused_with_what_is_wrong_and_where(opened: Open, message: str):
    with pytest.raises(MalformedModel) as caught:
        opened(MALFORMED[message])
    assert message in str(caught.value)
    assert "model.gguf" in str(caught.value)


UNSUPPORTED = {
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "version 1;": header(version=1),
    "version 4;": header(version=4),
    "array of arrays": header(pair("k", 9, array(9, 1)), keys=1),
    "type number 4, which is retired": padded(tensor("x", (32,), kind=4), tensors=1),
    "one of 3 parts": header(pair("split.count", 2, b"\3\0"), keys=1),
}


@pytest.mark.parametrize("message", UNSUPPORTED)
def test_a_sound_file_that_is_not_read_is_named_as_such(opened: Open, message: str):
    with pytest.raises(UnsupportedModel) as caught:
        opened(UNSUPPORTED[message])
    assert message in str(caught.value)


def test_values_that_do_not_decode_are_malformed_when_asked_for(opened: Open):
    file = opened(
        header(pair("text", 8, string(b"\xff")), pair("texts", 9, array(8, 2, string("a"), string(b"\xfe"))), keys=2)
    )
    with pytest.raises(MalformedModel, match="item 0 of 'text' is not UTF-8"):
        file.string("text")
    with pytest.raises(MalformedModel, match="item 1 of 'texts' is not UTF-8"):
        file.strings("texts")


def test_a_boolean_that_is_neither_is_malformed(opened: Open):
    with pytest.raises(MalformedModel, match="'flag' is a boolean with the value 2"):
        opened(header(pair("flag", 7, b"\2"), keys=1)).boolean("flag")


def test_a_missing_file_is_an_unknown_model(tmp_path: Path):
    with pytest.raises(UnknownModel, match="nowhere"):
        GgufFile(tmp_path / "nowhere.gguf")
    with pytest.raises(UnknownModel):
        GgufFile(tmp_path)


def test_every_truncation_of_the_header_is_refused(tiny: Path, tmp_path: Path):
    raw = tiny.read_bytes()
    end = raw.index(b"output.weight") + 64
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 400), *range(400, end, 61), end, len(raw) // 2, len(raw) - 32]:
        cut.write_bytes(raw[:length])
        with pytest.raises(ModelError):
            GgufFile(cut)


# --- identity ------------------------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_any_weight_and_any_metadata(tmp_path: Path):
    path = write_tiny_model(tmp_path / "a.gguf")
    with GgufFile(path) as file:
        original = file.fingerprint
        place = path.read_bytes().index(bytes(file.read("blk.2.ffn_up.weight")[:64]))
    raw = bytearray(path.read_bytes())
    raw[place + 5] ^= 1
    path.write_bytes(raw)
    with GgufFile(path) as file:
        weights_changed = file.fingerprint
    raw[place + 5] ^= 1
    raw[raw.index(b"Tiny llama")] ^= 32
    path.write_bytes(raw)
    with GgufFile(path) as file:
        metadata_changed = file.fingerprint
    with GgufFile(write_tiny_model(tmp_path / "b.gguf")) as file:
        assert file.fingerprint == original
    assert len({original, weights_changed, metadata_changed}) == 3


def test_the_fingerprint_is_the_files_own_hash_which_hubs_state_too(tiny: Path):
    with GgufFile(tiny) as file:
        assert file.fingerprint == hashlib.sha256(tiny.read_bytes()).hexdigest()


class HeaderAlone(GgufHeader):
    """A header whose weights are elsewhere."""

    fingerprint = ""

    def read(self, name: str):
        raise AssertionError(name)


def test_a_header_is_read_from_the_files_beginning_and_says_when_that_is_too_short(tiny: Path):
    raw = tiny.read_bytes()
    with GgufFile(tiny) as file:
        end = file.header_bytes
        header = HeaderAlone(raw[:end], tiny, len(raw))
        assert header.names() == file.names()
        assert header.strings("tokenizer.ggml.tokens") == file.strings("tokenizer.ggml.tokens")
        for name in file.names():
            begin = header.offset(name)
            assert raw[begin : begin + header.info(name).nbytes] == bytes(file.read(name))
    for length in [*range(0, 400), *range(400, end, 97), end - 1]:
        with pytest.raises(IncompleteHeader):
            HeaderAlone(raw[:length], tiny, len(raw))
    with pytest.raises(MalformedModel, match="truncated") as refused:
        HeaderAlone(raw[:end], tiny, len(raw) - 1000)
    assert not isinstance(refused.value, IncompleteHeader)


def test_a_tensors_digest_is_of_its_content_type_and_shape(tmp_path: Path):
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    values = np.arange(8, dtype=np.float32)
    for name, tensor_values in {
        "a": values,
        "b": values,
        "other": values + 1,
        "shape": values.reshape(2, 4),
        "type": values.view(np.int32),
    }.items():
        writer.add_tensor(name, tensor_values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile(tmp_path / "model.gguf") as file:
        digests = file.digests(file.names())
        assert digests["a"] == digests["b"] == file.tensor_digest("a")
        assert len(set(digests.values())) == 4
        with pytest.raises(MalformedModel, match="no tensor 'absent'"):
            file.tensor_digest("absent")


@pytest.fixture
def aged(tmp_path: Path) -> Path:
    """A model whose modification lies long enough ago to be trusted."""
    path = write_tiny_model(tmp_path / "aged.gguf")
    _age(path, 1_000_000_000)
    return path


def _age(path: Path, time_s: int) -> None:
    os.utime(path, ns=(time_s * 10**9, time_s * 10**9))


def refuse_to_hash(*_: object) -> str:
    raise AssertionError("hashed again")


def test_a_second_opening_takes_the_digests_from_the_cache(aged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = DigestCache(tmp_path / "digests")
    with GgufFile(aged, cache) as file:
        first, digest = file.fingerprint, file.tensor_digest("output.weight")
    monkeypatch.setattr(MappedFile, "_hash", refuse_to_hash)
    monkeypatch.setattr("hyperlane.models.mapping.hashlib", None)
    with GgufFile(aged, cache) as file:
        assert file.fingerprint == first
        assert file.tensor_digest("output.weight") == digest


def test_a_changed_file_is_hashed_again(aged: Path, tmp_path: Path):
    cache = DigestCache(tmp_path / "digests")
    with GgufFile(aged, cache) as file:
        first = file.fingerprint
    write_tiny_model(aged, seed=1)
    _age(aged, 1_000_000_001)
    with GgufFile(aged, cache) as file:
        assert file.fingerprint != first


def test_a_file_that_was_just_written_is_not_cached(tiny: Path, tmp_path: Path):
    path = write_tiny_model(tmp_path / "fresh.gguf")
    with GgufFile(path, DigestCache(tmp_path / "digests")) as file:
        assert file.fingerprint
    assert not (tmp_path / "digests").exists()


@pytest.mark.parametrize("damage", ["", "[1]", "{", '{"state": 1}', '{"digests": {"x": 3}}'])
def test_a_damaged_cache_is_only_slower(aged: Path, tmp_path: Path, damage: str):
    cache = DigestCache(tmp_path / "digests")
    with GgufFile(aged, cache) as file:
        first = file.fingerprint
    for entry in (tmp_path / "digests").iterdir():
        entry.write_text(damage)
    with GgufFile(aged, cache) as file:
        assert file.fingerprint == first


def test_a_cache_that_cannot_be_written_is_only_slower(aged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "blocked").write_text("a file where a folder should be")
    with GgufFile(aged, DigestCache(tmp_path / "blocked")) as file:
        assert file.fingerprint
    assert "cannot keep the digests" in caplog.text
