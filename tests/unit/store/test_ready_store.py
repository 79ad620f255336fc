"""Ready units on disk: whole or not there, checked, and made by any number of processes at once."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from multiprocessing import get_context

import numpy as np
import pytest

from hyperlane.errors import LoadFailed
from hyperlane.store.ready_file import ALIGNMENT, DATA, INDEX, NewTensor
from hyperlane.store.ready_store import STALE_S, UNFINISHED, ReadyStore, unit_key

PACKED = np.arange(5000, dtype=np.uint32).view(np.uint8)


def contents(fill=1):
    norm = np.full(7, fill, np.float32)
    matrix = np.full((3, 5), fill, np.uint8)
    return [NewTensor("norm", norm), NewTensor("matrix", matrix, "kernel+1", (PACKED, PACKED[:9]))], "a note"


def never():
    raise AssertionError("it is there and need not be made")


def values(unit, name):
    tensor = next(tensor for tensor in unit.tensors if tensor.name == name)
    data = np.fromfile(unit.data, np.uint8)
    span = data[tensor.span.offset : tensor.span.offset + tensor.span.length]
    return span.view(tensor.dtype).reshape(tensor.shape), [data[s.offset : s.offset + s.length] for s in tensor.packed]


def make_in_process(root, key, fill):
    ReadyStore(root).get_or_make(key, lambda: contents(fill))


def test_what_was_made_is_found_by_another_store(tmp_path):
    ReadyStore(tmp_path).get_or_make("k", contents)
    unit = ReadyStore(tmp_path).get_or_make("k", never)
    assert unit.note == "a note"
    np.testing.assert_array_equal(values(unit, "norm")[0], np.ones(7, np.float32))
    matrix, packed = values(unit, "matrix")
    np.testing.assert_array_equal(matrix, np.ones((3, 5), np.uint8))
    np.testing.assert_array_equal(packed[0], PACKED)
    np.testing.assert_array_equal(packed[1], PACKED[:9])


def test_every_buffer_is_aligned(tmp_path):
    unit = ReadyStore(tmp_path).get_or_make("k", contents)
    spans = [span for tensor in unit.tensors for span in (tensor.span, *tensor.packed)]
    assert all(span.offset % ALIGNMENT == 0 for span in spans)


def truncate(folder):
    os.truncate(folder / DATA, (folder / DATA).stat().st_size - 1)


def flip(folder):
    data = bytearray((folder / DATA).read_bytes())
    data[-1] ^= 1
    (folder / DATA).write_bytes(data)


def damage_index(folder):
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace('"norm"', '"morn"'))


def old_format(folder):
    body = b'{"format": 0}'

    (folder / INDEX).write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


@pytest.mark.parametrize(
    "harm",
    [
        truncate,
        flip,
        damage_index,
        old_format,
        lambda folder: (folder / DATA).unlink(),
        lambda folder: (folder / INDEX).unlink(),
        lambda folder: (folder / INDEX).write_bytes(b""),
    ],
    ids=["truncated", "flipped", "index damaged", "old format", "no data", "no index", "empty index"],
)
def test_a_damaged_unit_is_made_again(tmp_path, harm):
    ReadyStore(tmp_path).get_or_make("k", contents)
    harm(tmp_path / "k")
    assert ReadyStore(tmp_path).get("k") is None
    unit = ReadyStore(tmp_path).get_or_make("k", lambda: contents(2))
    np.testing.assert_array_equal(values(unit, "norm")[0], np.full(7, 2, np.float32))
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != ".checked"] == ["k"]


def test_content_is_read_once_and_then_only_when_the_file_has_changed(tmp_path, monkeypatch):
    ReadyStore(tmp_path).get_or_make("k", contents)
    settled = time.time() - 60
    os.utime(tmp_path / "k" / DATA, (settled, settled))
    assert ReadyStore(tmp_path).get("k") is not None
    with monkeypatch.context() as patch:
        patch.setattr("hyperlane.store.ready_store.data_digest", never)
        assert ReadyStore(tmp_path).get("k") is not None
    flip(tmp_path / "k")
    assert ReadyStore(tmp_path).get("k") is None


def test_what_fails_while_it_is_made_leaves_nothing(tmp_path):
    store = ReadyStore(tmp_path)
    with pytest.raises(ZeroDivisionError):
        store.get_or_make("k", lambda: 1 / 0)
    assert store.get("k") is None
    assert list(tmp_path.iterdir()) == []


def test_two_processes_that_make_the_same_unit_both_succeed(tmp_path):
    context = get_context("spawn")
    workers = [context.Process(target=make_in_process, args=(tmp_path, "k", 1)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert ReadyStore(tmp_path).get("k") is not None
    assert not list(tmp_path.glob(f"{UNFINISHED}*"))


def test_the_slower_of_two_threads_takes_what_the_faster_made(tmp_path):
    store = ReadyStore(tmp_path)
    both_make = threading.Barrier(2)
    units = []

    def run():
        units.append(store.get_or_make("k", lambda: both_make.wait(30) * 0 or contents()))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(units) == 2
    assert units[0] == units[1]


def test_unfinished_work_is_removed_once_it_is_old(tmp_path):
    for name in ("old", "new"):
        (tmp_path / f"{UNFINISHED}{name}").mkdir()
    old = time.time() - STALE_S - 60
    os.utime(tmp_path / f"{UNFINISHED}old", (old, old))
    ReadyStore(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [f"{UNFINISHED}new"]


def test_a_full_disk_is_a_clear_error_that_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hyperlane.store.ready_store.write_unit", full)
    with pytest.raises(LoadFailed, match=r"No space left on device.*HYPERLANE_HOME"):
        ReadyStore(tmp_path).get_or_make("k", contents)
    assert list(tmp_path.iterdir()) == []


def test_keys_differ_where_any_part_of_an_identity_does():
    identity = {"model": "a", "unit": "layer.1", "runtime": "r"}
    assert unit_key(identity) == unit_key(dict(reversed(identity.items())))
    assert len({unit_key(identity), *(unit_key({**identity, name: "other"}) for name in identity)}) == 4
