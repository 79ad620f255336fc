"""Names of models, and what a user may write for one."""

import re
from pathlib import Path

import pytest

from hyperlane.errors import TransferError, UnknownModel
from hyperlane.models import catalogue
from hyperlane.models.catalogue import CATALOGUE, HubSource, PackageSource
from hyperlane.models.resolve import Library, name_of, resolve
from hyperlane.models.tokenizer_pre import SPLIT_RULES


@pytest.fixture
def models_dir(tmp_path):
    """A cache in which every model of the catalogue seems to be installed."""
    for entry in CATALOGUE:
        with entry.path(tmp_path).open("wb") as file:
            file.truncate(entry.nbytes)
    return tmp_path


def test_every_entry_says_where_it_comes_from_and_what_it_must_be():
    assert len({entry.name for entry in CATALOGUE}) == len({entry.file for entry in CATALOGUE}) == len(CATALOGUE)
    for entry in CATALOGUE:
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert entry.licence
        assert entry.licence_url.startswith("https://")
        assert isinstance(entry.sources[0], PackageSource)
        assert isinstance(entry.sources[-1], HubSource)
        assert all(part.requirement.count("==") == 1 for part in entry.sources[0].parts)


def test_a_file_of_the_wrong_size_is_not_installed(models_dir):
    assert catalogue.installed(models_dir) == list(CATALOGUE)
    CATALOGUE[0].path(models_dir).write_bytes(b"GGUF")
    assert catalogue.installed(models_dir) == list(CATALOGUE[1:])
    assert catalogue.installed(models_dir / "none") == []


def test_an_installed_name_resolves_without_a_download(models_dir):
    for entry in CATALOGUE:
        assert (
            resolve(entry.name, Library(models_dir))
            == resolve(entry.name.upper(), Library(models_dir))
            == models_dir / entry.file
        )


def test_a_path_resolves_to_itself(tmp_path, monkeypatch):
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert resolve(str(file), Library(tmp_path / "models")) == file
    assert resolve(file, Library(tmp_path / "models")) == file
    assert resolve("mine.gguf", Library(tmp_path / "models")).samefile(file)


def test_an_unknown_name_is_answered_with_the_nearest_and_all_names(tmp_path):
    with pytest.raises(UnknownModel, match=r"'smollm-135m'; did you mean smollm2-135m\?.*gemma3-270m.*GGUF file"):
        resolve("smollm-135m", Library(tmp_path))
    with pytest.raises(UnknownModel, match=r"'zzz'; known names: smollm2-135m"):
        resolve("zzz", Library(tmp_path))


@pytest.mark.parametrize("written", ["./smollm2-135m", "~/none/x", "./folder/model", "model.gguf", "MODEL.GGUF"])
def test_a_path_to_nothing_is_not_taken_for_a_name(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModel, match="there is no file"):
        resolve(written, Library(tmp_path))


def test_a_folder_with_one_model_is_that_model_and_one_with_several_is_answered_with_their_names(tmp_path):
    with pytest.raises(UnknownModel, match="holds no model"):
        resolve(tmp_path, Library(tmp_path))
    (tmp_path / "a.gguf").write_bytes(b"")
    assert resolve(tmp_path, Library(tmp_path)) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(UnknownModel, match=r"give one of its files: a\.gguf, b\.gguf"):
        resolve(tmp_path, Library(tmp_path))


def test_a_checkpoints_folder_is_the_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert resolve(tmp_path, Library(tmp_path)) == tmp_path


def test_offline_a_name_that_is_not_here_is_refused_and_one_that_is_here_is_used(models_dir, tmp_path):
    assert resolve(CATALOGUE[0].name, Library(models_dir, offline=True)) == models_dir / CATALOGUE[0].file
    with pytest.raises(TransferError, match="smollm2-135m is not on this machine, and --offline"):
        resolve(CATALOGUE[0].name, Library(tmp_path / "empty", offline=True))


def test_a_model_is_called_by_its_name_its_file_or_its_repository(tmp_path):
    assert name_of("SMOLLM2-135m", tmp_path / "x.gguf") == "smollm2-135m"
    assert name_of("hf.co/o/r:Q4_0", tmp_path / "x-Q4_0.gguf") == "x-Q4_0"
    assert name_of("hf.co/o/r", tmp_path) == "r"
    assert name_of(str(tmp_path), tmp_path) == tmp_path.name


def test_the_documentation_names_every_model_source_and_pre_tokenizer():
    text = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    for entry in CATALOGUE:
        assert f"| `{entry.name}` |" in text
        assert entry.file in text
        assert entry.licence in text
        assert entry.sources[0].parts[0].requirement.partition("==")[0] in text
        assert entry.sources[-1].repo in text
    assert all(f"`{name}`" in text for name in SPLIT_RULES)
