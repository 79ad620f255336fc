import mmap

from hyperlane.stage.residency import _clean_mappings, release_after_load

SMAPS = """\
7f0000000000-7f0000002000 rw-p 00000000 fe:00 11 /cache/ready/a/weights.bin
Size:                  8 kB
Private_Clean:         8 kB
Private_Dirty:         0 kB
7f0000003000-7f0000004000 rw-p 00000000 fe:00 12 /cache/ready/b/weights.bin
Private_Clean:         0 kB
Private_Dirty:         4 kB
7f0000005000-7f0000006000 r--p 00000000 fe:00 13 /cache/ready-other/weights.bin
Private_Dirty:         0 kB
7f0000007000-7f0000008000 rw-p 00000000 00:00 0
Private_Dirty:         0 kB
7f0000009000-7f000000a000 rw-p 00000000 00:00 0 [heap]
Private_Dirty:         0 kB
"""


def test_only_unchanged_mappings_of_files_below_the_root_are_let_go():
    assert list(_clean_mappings(SMAPS, "/cache/ready")) == [(0x7F0000000000, 0x7F0000002000)]


def test_what_was_mapped_reads_the_same_afterwards(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 10_000)
    with (tmp_path / "f").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[5000:5002] == b"xx"
        release_after_load(tmp_path)
        assert mapped[:] == b"x" * 10_000
