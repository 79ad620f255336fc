"""Tensors on disk: pieces and their record, what a killed process leaves, what is refused."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from hyperlane.errors import ProtocolError
from hyperlane.models.ranges import TensorPlace, start_digest
from hyperlane.models.weights import TensorInfo
from hyperlane.store import partial as partial_module
from hyperlane.store import pieces
from hyperlane.store.pieces import Piece, piece_count, pieces_of, read_record, record_header, record_line
from hyperlane.store.tensor_store import TensorStore, map_tensor

MODEL = "ab" * 32
NBYTES = 1000
DATA = np.random.default_rng(3).integers(0, 256, NBYTES, np.uint8).tobytes()


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    for module in (pieces, partial_module):
        monkeypatch.setattr(module, "PIECE_BYTES", 300)


def place(data: bytes = DATA, name: str = "blk.0.attn_q.weight") -> TensorPlace:
    info = TensorInfo(name, (len(data),), "F32", len(data))
    digest = start_digest(info)
    digest.update(data)
    return TensorPlace(info, 0, 64, digest.hexdigest())


@pytest.fixture
def take():
    """Opens tensors to be written; closes them at the end."""
    opened = []

    def opens(store: TensorStore, wanted: TensorPlace | None = None):
        opened.append(store.partial(MODEL, wanted or place()))
        return opened[-1]

    yield opens
    for part in opened:
        if part is not None:
            part.close()


def fill(part, only=None) -> bool:
    last = False
    for piece in pieces_of(part.place.info.name, part.place.info.nbytes):
        if only is None or piece.index in only:
            last = part.write(piece, DATA[piece.offset : piece.offset + piece.length])
    return last


# --- pieces and records --------------------------------------------------------------------------------------


def test_pieces_cover_a_tensor_once_and_in_order():
    found = list(pieces_of("t", NBYTES))
    assert [(piece.offset, piece.length) for piece in found] == [(0, 300), (300, 300), (600, 300), (900, 100)]
    assert piece_count(NBYTES) == len(found) == 4
    assert piece_count(300) == 1


@pytest.mark.parametrize("cut", range(1, 7))
def test_a_record_that_was_cut_off_anywhere_never_claims_a_piece_that_was_not_written(cut):
    record = record_header(place()) + b"".join(record_line(index) for index in (2, 0, 3))
    claimed = read_record(record[:-cut], place())
    assert claimed is not None
    assert claimed <= {0, 2, 3}
    assert 3 not in claimed


def test_a_record_of_something_else_counts_for_nothing():
    record = record_header(place()) + record_line(1)
    assert read_record(record, place()) == {1}
    assert read_record(record, replace(place(), digest="00" * 32)) is None
    assert read_record(record[:5], place()) is None
    assert read_record(record_header(place()) + b"77\nxy\n", place()) == frozenset()


# --- on disk -------------------------------------------------------------------------------------------------


def test_a_tensor_is_there_when_its_last_piece_is(tmp_path, take):
    store, wanted = TensorStore(tmp_path), place()
    assert store.find(MODEL, wanted) is None
    part = take(store, wanted)
    assert not fill(part, {3, 1})
    assert store.find(MODEL, wanted) is None
    assert fill(part, {0, 2})
    path = part.publish(part.digest())
    assert store.find(MODEL, wanted) == path
    assert map_tensor(path).tobytes() == DATA
    assert store.digests(MODEL) == {wanted.info.name: wanted.digest}


def test_what_an_interrupted_process_left_is_taken_up(tmp_path, take):
    store = TensorStore(tmp_path)
    first = take(store)
    fill(first, {0, 2})
    first.close()
    second = take(TensorStore(tmp_path))
    assert second.done == {0, 2}
    assert fill(second, {1, 3})
    assert second.digest() == place().digest


def test_a_line_that_was_cut_off_does_not_spoil_the_lines_after_it(tmp_path, take):
    store = TensorStore(tmp_path)
    first = take(store)
    fill(first, {0})
    first.close()
    record = next(tmp_path.rglob("*.pieces"))
    record.write_bytes(record.read_bytes() + b"3")  # killed while it wrote, perhaps, "31"
    second = take(store)
    assert second.done == {0}
    fill(second, {1})
    second.close()
    assert take(store).done == {0, 1}


def test_pieces_of_another_content_are_not_taken_up(tmp_path, take):
    store = TensorStore(tmp_path)
    first = take(store)
    fill(first, {0, 1})
    first.close()
    assert take(store, place(bytes(NBYTES))).done == set()


def test_a_tensor_is_written_by_one_process_at_a_time(tmp_path, take):
    first = take(TensorStore(tmp_path))
    assert take(TensorStore(tmp_path)) is None
    first.close()
    assert take(TensorStore(tmp_path)) is not None


@pytest.mark.parametrize("spoil", ["content", "length", "digest"])
def test_a_cached_tensor_that_changed_is_not_used(tmp_path, take, spoil):
    store = TensorStore(tmp_path)
    part = take(store)
    fill(part)
    path = part.publish(part.digest())
    if spoil == "content":
        path.write_bytes(b"x" + DATA[1:])
    elif spoil == "length":
        path.write_bytes(DATA[:-1])
    wanted = place() if spoil != "digest" else replace(place(), digest="11" * 32)
    assert store.find(MODEL, wanted) is None
    assert not path.exists()


def test_what_nobody_knew_the_digest_of_is_kept_with_the_one_that_was_measured(tmp_path, take):
    store, unknown = TensorStore(tmp_path), replace(place(), digest="")
    part = take(store, unknown)
    fill(part)
    part.publish(part.digest())
    assert store.find(MODEL, unknown) is not None
    assert store.find(MODEL, place()) is not None


def test_wrong_pieces_are_told_apart_by_their_own_digests(tmp_path, take):
    part = take(TensorStore(tmp_path))
    fill(part)
    right = part.piece_digests()
    part.write(Piece(place().info.name, 1, 300, 300), bytes(300))
    wrong = part.piece_digests()
    assert {index for index in right if right[index] != wrong[index]} == {1}
    assert right[3] == hashlib.sha256(DATA[900:]).hexdigest()
    part.restart()
    assert part.done == set()


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "..", "ü weight", "x" * 60])
def test_every_name_is_a_file_of_the_models_folder(tmp_path, take, name):
    store = TensorStore(tmp_path)
    part = take(store, place(name=name))
    fill(part)
    path = part.publish(part.digest())
    assert path.parent == store.folder(MODEL)
    assert list(store.digests(MODEL)) == [name]


@pytest.mark.parametrize("model", ["", "..", "../x", "AB" * 32, "ab" * 7])
def test_what_is_no_fingerprint_is_no_folder(tmp_path, model):
    with pytest.raises(ProtocolError, match="fingerprint"):
        TensorStore(tmp_path).digests(model)
