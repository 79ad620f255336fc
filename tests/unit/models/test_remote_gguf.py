"""Headers of GGUF files that lie on a hub: read without the weights, and equal to what the whole file says."""

import hashlib
from pathlib import Path

import pytest

from hyperlane.errors import MalformedModel, TransferError
from hyperlane.models import remote_gguf
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.models.ranges import RemoteFile
from hyperlane.models.remote_gguf import RemoteGguf, open_remote
from hyperlane.models.tokenizer import Tokenizer
from hyperlane.testing.hub import HubStandIn
from hyperlane.testing.tiny_models import write_tiny_model

REPO = "owner/repo"


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """A model of 6 MB with a header of 15 kB."""
    folder = tmp_path_factory.mktemp("remote")
    return write_tiny_model(folder / "tiny.gguf", layers=30, hidden=256, ffn=512, rope_factors=True)


@pytest.fixture
def remote(hub: HubStandIn, local: Path) -> RemoteFile:
    content = local.read_bytes()
    repository = hub.add(REPO, {"tiny.gguf": content})
    url = f"{hub.url}/{REPO}/resolve/{repository.commit}/tiny.gguf"
    return RemoteFile(url, len(content), hashlib.sha256(content).hexdigest())


def test_a_remote_model_has_the_facts_tokens_and_places_of_the_whole_file(remote, local, tmp_path):
    model = open_remote(remote, "tiny.gguf", tmp_path)
    raw = local.read_bytes()
    with GgufFile(local) as file:
        assert read_facts(model) == read_facts(file)
        assert Tokenizer.from_metadata(model).encode("Hello") == Tokenizer.from_metadata(file).encode("Hello")
        assert model.names() == file.names()
        assert model.remote_files == (remote,)
        for name in file.names():
            place = model.place(name)
            assert (place.info, place.file) == (file.info(name), 0)
            assert raw[place.offset : place.offset + place.info.nbytes] == bytes(file.read(name))
        assert bytes(model.read("blk.3.ffn_up.weight")) == bytes(file.read("blk.3.ffn_up.weight"))
    assert model.place("absent") is None
    with pytest.raises(MalformedModel, match="no tensor 'absent'"):
        model.read("absent")


def test_the_header_alone_is_fetched_and_only_once(hub, remote, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_gguf, "FIRST_BYTES", 4096)
    first = open_remote(remote, "tiny.gguf", tmp_path)
    sent = hub.bytes_sent()
    assert first.header_bytes <= sent < 4 * max(4096, first.header_bytes)
    assert sent < remote.size / 50
    facts = read_facts(first)
    asked = len(hub.asked)
    second = open_remote(remote, "tiny.gguf", tmp_path)
    assert read_facts(second) == facts
    assert len(hub.asked) == asked
    assert second.header() == first.header() == second.header()
    assert second.names() == first.names()


def test_a_damaged_copy_of_a_header_is_read_anew(hub, remote, tmp_path):
    names = open_remote(remote, "tiny.gguf", tmp_path).names()
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:-100])
    assert open_remote(remote, "tiny.gguf", tmp_path).names() == names
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_stated_hash_every_version_is_a_model_of_its_own(remote, local):
    raw = local.read_bytes()

    def fingerprint(etag: str) -> str:
        return RemoteGguf(RemoteFile(remote.url, remote.size, etag=etag), raw[:50_000], Path("tiny.gguf")).fingerprint

    assert fingerprint('"a"') == fingerprint('"a"') != fingerprint('"b"')


class Endless:
    """A file whose header has no end."""

    size, digest = 1 << 40, ""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.read_bytes = raw, 0

    def read(self, offset: int, length: int) -> bytes:
        self.read_bytes += length
        return self.raw[offset : offset + length] + bytes(length - len(self.raw[offset : offset + length]))

    def close(self) -> None:
        """Nothing to close."""


def test_a_header_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_gguf, "MAX_HEADER_BYTES", 4 << 20)
    claims = b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little") + (1).to_bytes(8, "little")
    claims += (1).to_bytes(8, "little") + b"k" + (8).to_bytes(4, "little") + (1 << 39).to_bytes(8, "little")
    endless = Endless(claims)
    with pytest.raises(MalformedModel, match="its header has more than 4 MiB"):
        open_remote(RemoteFile("http://x/m.gguf", endless.size), "m.gguf", tmp_path, lambda _file: endless)
    assert endless.read_bytes <= 4 << 20


def test_a_remote_file_that_is_no_model_is_refused_after_its_beginning(hub, tmp_path):
    hub.add(REPO, {"m.gguf": b"<html>" * 100_000})
    remote = RemoteFile(f"{hub.storage}/storage/{REPO}/m.gguf", 600_000)
    with pytest.raises(MalformedModel, match="is not a GGUF file"):
        open_remote(remote, "m.gguf", tmp_path)


def test_a_folder_that_cannot_hold_headers_is_a_transfer_error(remote, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TransferError, match="cannot be kept"):
        open_remote(remote, "tiny.gguf", tmp_path / "file")
