"""Checkpoints that lie on a hub: texts and headers read without the weights, equal to what the whole folder says."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperlane.errors import MalformedModel, TransferError
from hyperlane.models.checkpoint import Checkpoint
from hyperlane.models.reference import HubReference
from hyperlane.models.remote_checkpoint import open_remote_checkpoint
from hyperlane.models.remote_model import RemoteModel
from hyperlane.models.resolve import Library, copy_of
from hyperlane.models.shelf import Shelf
from hyperlane.models.source import facts_of, tokenizer_of
from hyperlane.testing.checkpoints import write_checkpoint
from hyperlane.testing.hub import HubStandIn
from hyperlane.testing.tiny_models import write_tiny_model

REPO = "owner/repo"


@pytest.fixture(scope="module", params=[1, 3])
def local(request, tmp_path_factory) -> Path:
    """A checkpoint's folder, in one file and in several."""
    folder = tmp_path_factory.mktemp("checkpoints")
    gguf = write_tiny_model(folder / "tiny.gguf", layers=6, hidden=128, ffn=256, type="F16", embedding_type="F16")
    return write_checkpoint(gguf, folder / "repo", shards=request.param)


@pytest.fixture
def repository(hub: HubStandIn, local: Path):
    return hub.add(REPO, {path.name: path.read_bytes() for path in local.iterdir()})


@pytest.fixture
def remote(hub, repository, tmp_path) -> RemoteModel:
    found = Shelf(tmp_path / "models").locate(HubReference(REPO))
    assert isinstance(found, RemoteModel)
    return found


def test_a_remote_checkpoint_has_the_facts_tokens_and_places_of_the_folder(hub, remote, local, tmp_path):
    model = open_remote_checkpoint(remote, tmp_path / "kept")
    with Checkpoint(local) as whole:
        assert facts_of(model) == facts_of(whole)
        assert tokenizer_of(model).encode("the ring") == tokenizer_of(whole).encode("the ring")
        assert model.names() == whole.names()
        for name in whole.names():
            place = model.place(name)
            assert (place.info, place.digest) == (whole.info(name), "")
            content = (local / model.remote_files[place.file].url.rsplit("/", 1)[-1]).read_bytes()
            assert content[place.offset : place.offset + place.info.nbytes] == bytes(whole.read(name))
        assert bytes(model.read("blk.1.ffn_up.weight")) == bytes(whole.read("blk.1.ffn_up.weight"))
    assert model.place("absent") is None


def test_the_weights_are_not_fetched_and_a_second_look_asks_for_nothing(hub, remote, local, tmp_path, monkeypatch):
    monkeypatch.setattr("hyperlane.models.remote_checkpoint.FIRST_BYTES", 64)
    first = open_remote_checkpoint(remote, tmp_path / "kept")
    headers = sum(
        8 + int.from_bytes(path.read_bytes()[:8], "little") for path in local.iterdir() if path.suffix == ".safetensors"
    )
    assert hub.bytes_sent(".safetensors") == headers
    asked = len(hub.asked)
    assert open_remote_checkpoint(remote, tmp_path / "kept").fingerprint == first.fingerprint
    assert len(hub.asked) == asked


def test_a_damaged_copy_is_read_anew(hub, remote, tmp_path):
    first = open_remote_checkpoint(remote, tmp_path / "kept")
    for kept in (tmp_path / "kept").glob("*.header"):
        kept.write_bytes(kept.read_bytes()[:-10])
    assert open_remote_checkpoint(remote, tmp_path / "kept").names() == first.names()


def test_a_text_that_is_not_what_the_hub_lists_is_refused(hub, repository, remote, tmp_path):
    repository.files["config.json"] = repository.files["config.json"].replace(b"llama", b"lamma")
    with pytest.raises(TransferError, match="another content"):
        open_remote_checkpoint(remote, tmp_path / "kept")


def test_an_index_that_names_a_missing_file_is_refused(hub, repository, local, tmp_path):
    if len(list(local.glob("*.safetensors"))) > 1:
        del repository.files["model-00002-of-00003.safetensors"]
    else:
        repository.files["model.safetensors.index.json"] = b'{"weight_map": {"a": "model-00007-of-00008.safetensors"}}'
    found = Shelf(tmp_path / "models").locate(HubReference(REPO))
    with pytest.raises(MalformedModel, match=r"names 'model-0000.*does not have"):
        open_remote_checkpoint(found, tmp_path / "kept")


def test_a_copy_of_the_files_is_the_same_model(hub, remote, tmp_path):
    library = Library(tmp_path / "models")
    fingerprint = open_remote_checkpoint(remote, tmp_path / "kept").fingerprint
    assert copy_of(fingerprint, library) is None
    path = library.shelf.bring(HubReference(REPO))
    assert library.shelf.bring(HubReference(REPO)) == path
    with Checkpoint(path) as whole:
        assert whole.fingerprint == fingerprint
    assert copy_of(fingerprint, library) == path
