"""A cache within its limit: what goes first, what never goes, what is left behind by whom."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from hyperlane.errors import LoadFailed
from hyperlane.store import cache as cache_module
from hyperlane.store import usage
from hyperlane.store.cache import Cache
from hyperlane.store.eviction import Entry, Kind, to_evict
from hyperlane.store.ready_file import NewTensor
from hyperlane.store.ready_store import ReadyStore

OLD, NEW = "0a" * 32, "0b" * 32
GB = 1 << 30


def entry(where: str, used_s: float, nbytes: int = 10, **more) -> Entry:
    return Entry(Kind.TENSORS, where, OLD, "m", nbytes, used_s, **more)


# --- who goes ------------------------------------------------------------------------------------------------


def test_what_was_used_least_recently_goes_first_and_no_more_than_needed():
    entries = [entry("c", 3.0), entry("a", 1.0), entry("b", 2.0)]
    assert [e.where for e in to_evict(entries, 11)] == ["a", "b"]
    assert to_evict(entries, 0) == []


def test_spare_copies_go_before_everything_else():
    entries = [entry("old", 1.0), entry("spare", 9.0, spare=True)]
    assert [e.where for e in to_evict(entries, 5)] == ["spare"]


def test_what_is_in_use_never_goes_however_much_is_missing():
    entries = [entry("used", 1.0, in_use=True), entry("free", 2.0)]
    assert [e.where for e in to_evict(entries, 1000)] == ["free"]


# --- on disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path):
    """Two models: tensors of both, an unfinished one of the newer, and the older one's weights in ready form."""
    for age, model in enumerate((NEW, OLD)):
        folder = tmp_path / "tensors" / model
        folder.mkdir(parents=True)
        (folder / "about.json").write_text(json.dumps({"name": f"model-{age}"}))
        os.utime(folder / "about.json", (1e9 - age * 1000,) * 2)
        for number in range(3):
            (folder / f"t{number}.bin").write_bytes(bytes(1000))
            (folder / f"t{number}.sha256").write_text("00")
    (tmp_path / "tensors" / NEW / "late.part").write_bytes(bytes(5000))
    return tmp_path


def make_ready(home, model: str) -> None:
    contents = ([NewTensor("w", np.zeros(100, np.uint8))], "note")
    ReadyStore(home / "ready").get_or_make(f"key-{model}", lambda: contents, {"model": model, "name": "m"})


def whole(home, model: str) -> int:
    return len(list((home / "tensors" / model).glob("*.bin")))


def test_a_limit_is_kept_by_dropping_the_oldest(home):
    used = sum(e.nbytes for e in Cache(home).entries())
    Cache(home, limit=used - 1500).trim()
    assert (whole(home, OLD), whole(home, NEW)) == (1, 3)
    assert sum(e.nbytes for e in Cache(home).entries()) <= used - 1500


def test_a_model_that_is_loaded_keeps_everything_and_others_make_room(home):
    hold = Cache(home).hold(OLD, usage.LOADING)
    Cache(home, limit=1).trim()
    assert (whole(home, OLD), whole(home, NEW)) == (3, 0)
    hold.release()
    Cache(home, limit=1).trim()
    assert whole(home, OLD) == 0


def test_a_running_model_gives_its_spare_copies_and_keeps_what_it_runs_on(home):
    make_ready(home, OLD)
    hold = Cache(home).hold(OLD, usage.RUNNING)
    Cache(home, limit=1).trim()
    assert whole(home, OLD) == 0
    assert [e.kind for e in Cache(home).entries()] == [Kind.READY]
    hold.release()
    assert not list((home / "in-use").iterdir())
    Cache(home, limit=1).trim()
    assert Cache(home).entries() == []


def test_a_model_without_a_ready_form_keeps_its_tensors_while_it_runs(home):
    hold = Cache(home).hold(NEW, usage.RUNNING)
    Cache(home, limit=1).trim()
    assert whole(home, NEW) == 3
    hold.release()


def test_what_a_process_that_died_held_is_free_again(home):
    (home / "in-use").mkdir()
    (home / "in-use" / f"{OLD}.{usage.LOADING}.1-0").touch()
    assert not any(e.in_use for e in Cache(home).entries())
    assert not list((home / "in-use").iterdir())


def test_pruning_drops_unfinished_tensors_and_spare_copies_alone(home):
    make_ready(home, OLD)
    Cache(home).prune()
    assert (whole(home, OLD), whole(home, NEW)) == (0, 3)
    assert not list((home / "tensors").rglob("*.part"))
    assert [e.model for e in Cache(home).entries() if e.kind is Kind.READY] == [OLD]


def test_clearing_drops_all_that_is_not_in_use(home):
    make_ready(home, OLD)
    hold = Cache(home).hold(NEW, usage.LOADING)
    Cache(home).clear()
    assert {e.model for e in Cache(home).entries()} == {NEW}
    hold.release()


def test_a_ready_unit_counts_as_used_when_it_is_got(home):
    make_ready(home, OLD)
    about = home / "ready" / f"key-{OLD}" / "about.json"
    for path in (about, about.parent):
        os.utime(path, (1e9, 1e9))
    ReadyStore(home / "ready").get(f"key-{OLD}")
    assert next(e for e in Cache(home).entries() if e.kind is Kind.READY).used_s > 1.1e9


def test_the_limit_that_was_set_is_kept_until_it_is_forgotten(tmp_path):
    Cache(tmp_path).set_limit(5 * GB)
    assert Cache(tmp_path).limit == Cache(tmp_path).allowed(0) == 5 * GB
    assert Cache(tmp_path, limit=GB).limit == GB
    Cache(tmp_path).set_limit(None)
    assert Cache(tmp_path).limit is None


def test_without_a_limit_a_tenth_of_the_disk_stays_free(tmp_path, monkeypatch):
    disk = SimpleNamespace(total=100 * GB, used=0, free=30 * GB)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: disk)
    assert Cache(tmp_path).allowed(2 * GB) == 22 * GB


def test_a_disk_without_room_is_told_with_both_numbers(tmp_path, monkeypatch):
    disk = SimpleNamespace(total=100 * GB, used=0, free=GB)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: disk)
    with pytest.raises(LoadFailed, match=r"2\.15 GB, but .* 1\.07 GB free"):
        Cache(tmp_path).make_room(2 * GB)
