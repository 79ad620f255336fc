"""Whatever is done to a valid file, opening it and asking everything of it raises nothing but ModelError."""

import os
import tempfile
import tracemalloc
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlane.errors import ModelError
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.models.quant import matrix_form
from hyperlane.testing.tiny_models import write_tiny_model

FUZZ = int(os.environ.get("HYPERLANE_TEST_FUZZ", "1"))
"""`make fuzz` tries so many times as much."""

ALLOWED_BYTES = 16 << 20
"""Python and NumPy memory at its peak, for a file of some 50 KiB."""


@cache
def valid_file(family: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"attn_v": "Q5_1", "ffn_up": "Q4_1", "ffn_down": "F16"}
        path = write_tiny_model(Path(folder) / "valid.gguf", family=family, layers=1, hidden=32, ffn=32, types=kinds)
        return path.read_bytes()


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """A valid file with a few bytes, words or spans changed, mostly in the header, perhaps cut off."""
    raw = bytearray(valid_file(draw(st.sampled_from(["llama", "gemma3"]))))
    header = len(raw) // 2
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.one_of(st.integers(0, 64), st.integers(0, header), st.integers(0, len(raw) - 1)))
        change = draw(st.one_of(st.binary(min_size=1, max_size=12), st.sampled_from(INTERESTING)))
        raw[at : at + len(change)] = change
    return bytes(raw[: draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))])


INTERESTING = [value.to_bytes(8, "little") for value in (0, 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)]
INTERESTING += [value.to_bytes(4, "little") for value in (0, 1, 8, 9, 13, 2**31, 2**32 - 1)]


def use_everything(path: Path) -> None:
    with GgufFile(path) as file:
        keys = file.keys()
        for key in keys:
            for ask in (file.string, file.integer, file.floating, file.boolean):
                _try(lambda ask=ask, key=key: ask(key))
            for ask in (file.strings, file.integers, file.floats, file.count):
                _try(lambda ask=ask, key=key: ask(key))
        for name in file.names():
            info = file.info(name)
            for exact in (True, False):
                _try(lambda name=name, info=info, exact=exact: matrix_form(info, file.read(name), exact=exact))
        read_facts(file)


def _try(action: object) -> None:
    try:
        action()
    except ModelError as error:
        assert str(error)  # noqa: PT017


@settings(max_examples=150 * FUZZ, deadline=None)
@given(raw=mutated_files())
def test_a_mutated_file_raises_only_model_errors_and_allocates_little(raw: bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutated.gguf"
        path.write_bytes(raw)
        tracemalloc.start()
        try:
            _try(lambda: use_everything(path))
            assert tracemalloc.get_traced_memory()[1] < ALLOWED_BYTES
        finally:
            tracemalloc.stop()


@settings(max_examples=100 * FUZZ, deadline=None)
@given(raw=st.binary(max_size=200).map(lambda tail: b"GGUF\x03\0\0\0" + tail))
def test_random_bytes_after_the_magic_raise_only_model_errors(raw: bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        path.write_bytes(raw)
        _try(lambda: use_everything(path))


def test_the_unchanged_file_passes(tmp_path: Path):
    for family in ("llama", "gemma3"):
        path = tmp_path / f"{family}.gguf"
        path.write_bytes(valid_file(family))
        use_everything(path)


def test_a_file_of_empty_strings_ends_soon(tmp_path: Path):
    path = tmp_path / "strings.gguf"
    claims = (2**24).to_bytes(8, "little")
    head = b"GGUF\x03\0\0\0" + bytes(8) + (1).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"k"
    path.write_bytes(head + b"\x09\0\0\0\x08\0\0\0" + claims + bytes(1 << 16))
    with pytest.raises(ModelError, match="claims 16777216 items"):
        GgufFile(path)
