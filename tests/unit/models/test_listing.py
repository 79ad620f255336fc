"""What the list of models says, and what is removed by its names: after downloads from a hub that the test makes."""

import random
from pathlib import Path

import pytest

from hyperlane.errors import TransferError, UnknownModel
from hyperlane.models.listing import find, remove, rows
from hyperlane.models.reference import HubReference, UrlReference
from hyperlane.models.remote_model import RemoteModel
from hyperlane.models.resolve import Library, resolve
from hyperlane.models.shelf import PAPERS, Shelf
from hyperlane.testing.hub import HubStandIn

LARGE = random.Random(2).randbytes(1 << 20)
OTHER = random.Random(3).randbytes(300_000)
REPO = "owner/repo"
Q4, Q8 = HubReference(REPO, pick="Q4_0"), HubReference(REPO, pick="Q8_0")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def shelf(models: Path) -> Shelf:
    return Shelf(models)


@pytest.fixture
def repository(hub: HubStandIn):
    return hub.add(REPO, {"sub/m-Q4_0.gguf": LARGE, "m-Q8_0.gguf": OTHER, "README.md": b"about"})


def test_the_list_says_name_size_source_place_and_licence(hub, repository, shelf, models):
    path = shelf.bring(Q4)
    url = UrlReference(f"{hub.storage}/storage/{REPO}/sub/m-Q4_0.gguf")
    shelf.bring(url)
    from_hub, from_url = sorted((row for row in rows(models) if row.installed), key=lambda row: row.name)
    assert (from_hub.name, from_hub.nbytes, from_hub.path) == ("hf.co/owner/repo:sub/m-Q4_0.gguf", len(LARGE), path)
    assert (from_hub.source, from_hub.version) == ("hf.co/owner/repo", repository.commit)
    assert from_hub.licence == "apache-2.0"
    assert (from_url.name, from_url.source) == (url.url, url.url)


def test_what_the_list_calls_a_model_brings_it(hub, repository, shelf, models):
    hub.add("owner/checkpoint", {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": OTHER})
    paths = {shelf.bring(Q4), shelf.bring(HubReference("owner/checkpoint"))}
    assert {resolve(row.name, Library(models)) for row in rows(models) if row.installed} == paths


@pytest.mark.parametrize(
    "name", ["hf.co/owner/repo:sub/m-Q4_0.gguf", "owner/repo:Q4_0", "owner/repo:m-q4_0.GGUF", "hf://owner/repo"]
)
def test_a_model_is_removed_by_any_of_its_names_with_nothing_left(hub, repository, shelf, models, name):
    shelf.bring(Q4)
    for row in find(name, models):
        remove(row, models)
    assert list(models.iterdir()) == []


def test_one_quantisation_is_removed_and_the_other_stays(hub, repository, shelf, models):
    shelf.bring(Q4)
    other = shelf.bring(Q8)
    (row,) = find("owner/repo:Q4_0", models)
    remove(row, models)
    assert [row.path for row in rows(models) if row.installed] == [other]


def test_every_version_of_a_file_is_removed_with_it(hub, repository, shelf, models):
    shelf.bring(Q4)
    repository.files["sub/m-Q4_0.gguf"] = OTHER
    shelf.bring(Q4)
    found = find("owner/repo:Q4_0", models)
    assert len(found) == 2
    for row in found:
        remove(row, models)
    assert not list(models.rglob("*.gguf"))


def test_a_file_that_was_not_downloaded_is_never_removed(models, tmp_path):
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(LARGE)
    with pytest.raises(UnknownModel, match="is your own file"):
        find(str(mine), models)
    for name in ("owner/repo:Q4_0", "smollm2-135m", "nothing", "./nothing.gguf"):
        with pytest.raises(UnknownModel, match="not among the models that were downloaded"):
            find(name, models)
    assert mine.read_bytes() == LARGE


def test_a_download_that_was_given_up_is_listed_as_such_and_removed_by_its_name(hub, repository, shelf, models):
    answers = iter([-600_000, 404])
    hub.fault = lambda _method, path: next(answers, None) if path.startswith("/storage/") else None
    with pytest.raises(TransferError):
        shelf.bring(Q4)
    (row,) = [row for row in rows(models) if row.source != "catalogue"]
    assert not row.installed
    assert 600_000 <= row.nbytes < 601_000
    assert "unfinished" in row.about
    assert find("owner/repo:Q4_0", models) == [row]
    remove(row, models)
    assert list(models.iterdir()) == []


def test_a_file_that_somebody_removed_is_brought_again(hub, repository, shelf, models):
    path = shelf.bring(Q4)
    path.unlink()
    assert shelf.kept() == []
    assert isinstance(shelf.locate(Q4), RemoteModel)
    assert shelf.bring(Q4).read_bytes() == LARGE
    assert [row.installed for row in rows(models) if row.source != "catalogue"] == [True]


def test_papers_that_cannot_be_read_are_passed_over(hub, repository, shelf, models, caplog):
    shelf.bring(Q4)
    (place,) = models.rglob(PAPERS)
    for damage in ("", "[]", "{}", '{"files": [{}]}', '{"files": 3}'):
        place.write_text(damage)
        assert shelf.kept() == []
    assert "cannot be read" in caplog.text


def test_a_name_with_dangerous_characters_stays_in_its_folder(hub, shelf, models):
    hub.add(REPO, {"a\\..\\..\\b:c-Q4_0.gguf": LARGE})
    path = shelf.bring(HubReference(REPO, pick="Q4_0"))
    assert path.name == "a_.._.._b_c-Q4_0.gguf"
    assert models in path.parents
