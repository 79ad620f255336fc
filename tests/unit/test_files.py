"""Files that are changed at once."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from hyperlane.files import OWNER, replace_file


def test_a_file_is_replaced_and_nothing_else_stays(tmp_path):
    place = tmp_path / "a"
    place.write_bytes(b"old")
    (tmp_path / f".a.{os.getpid()}-{threading.get_ident()}.tmp").write_bytes(b"of a process that died")
    replace_file(place, b"new")
    assert place.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    place = tmp_path / "a"
    place.write_bytes(b"old")

    def full(_descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        replace_file(place, b"new")
    assert place.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_a_file_is_its_owners_alone_only_when_asked(tmp_path):
    before = os.umask(0o022)
    try:
        replace_file(tmp_path / "all", b"")
        replace_file(tmp_path / "own", b"", OWNER)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("all", "own")]
    assert modes == [0o644, 0o600]
