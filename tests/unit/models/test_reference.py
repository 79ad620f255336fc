from pathlib import Path

import pytest

from hyperlane.errors import UnknownModel
from hyperlane.models import catalogue
from hyperlane.models.reference import HubReference, LocalReference, UrlReference, parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def nothing(_path: Path) -> bool:
    return False


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("owner/repo", HubReference("owner/repo")),
        ("owner/repo:Q4_K_M", HubReference("owner/repo", pick="Q4_K_M")),
        ("owner/repo:sub/model-Q4_0.gguf", HubReference("owner/repo", pick="sub/model-Q4_0.gguf")),
        ("owner/repo@v1.0:Q8_0", HubReference("owner/repo", "v1.0", "Q8_0")),
        ("hf.co/Owner/Repo-1.5_x:Q4_K_M", HubReference("Owner/Repo-1.5_x", pick="Q4_K_M")),
        ("HF.co/owner/repo", HubReference("owner/repo")),
        ("huggingface.co/owner/repo", HubReference("owner/repo")),
        ("hf://owner/repo", HubReference("owner/repo")),
        ("hf://owner/repo:Q4_0", HubReference("owner/repo", pick="Q4_0")),
        ("hf://owner/repo/model.gguf", HubReference("owner/repo", pick="model.gguf")),
        (f"hf://owner/repo@{COMMIT}/sub/model.gguf", HubReference("owner/repo", COMMIT, "sub/model.gguf")),
        ("https://huggingface.co/owner/repo", HubReference("owner/repo")),
        ("https://huggingface.co/owner/repo/tree/main", HubReference("owner/repo")),
        ("https://huggingface.co/owner/repo/blob/v2/m.gguf", HubReference("owner/repo", "v2", "m.gguf")),
        ("https://hf.co/owner/repo/resolve/main/m%20x.gguf", HubReference("owner/repo", pick="m x.gguf")),
        ("owner/repo.gguf:Q4_0", HubReference("owner/repo.gguf", pick="Q4_0")),
        ("https://example.org/a/model.gguf?key=1", UrlReference("https://example.org/a/model.gguf?key=1")),
        ("http://127.0.0.1:8000/model.GGUF", UrlReference("http://127.0.0.1:8000/model.GGUF")),
    ],
)
def test_a_reference_is_read(text, meant):
    assert parse(text, nothing) == meant


def test_what_a_reference_prints_means_the_same_again():
    for text in ("owner/repo", "owner/repo:Q4_0", "owner/repo@v1:a/b.gguf"):
        meant = parse(text, nothing)
        assert parse(str(meant), nothing) == meant


def test_a_name_of_the_catalogue_wins_over_a_file_and_a_file_over_a_repository():
    entry = catalogue.CATALOGUE[0]
    assert parse(entry.name, lambda _path: True) is entry
    assert parse("owner/repo", lambda _path: True) == LocalReference(Path("owner/repo"))
    assert parse("hf.co/owner/repo", lambda path: not str(path).startswith("hf.co")) == HubReference("owner/repo")
    assert parse("./smollm2-135m", lambda _path: True) == LocalReference(Path("smollm2-135m"))


@pytest.mark.parametrize(
    "text", ["./model.gguf", "~/models/x", "models/model.gguf", "/a/b", "a/b/c", "model.gguf", "C:\\models\\m.gguf"]
)
def test_a_path_that_is_not_there_is_named_and_the_ways_to_name_a_model_are_listed(text):
    with pytest.raises(UnknownModel, match=r"there is no file or folder .*hf\.co/OWNER/REPO:QUANTISATION"):
        parse(text, nothing)


@pytest.mark.parametrize("text", ["hf.co/owner", "hf.co/", "hf://owner", "hf.co/owner/repo:../x", "hf.co/ow ner/repo"])
def test_what_is_no_repository_is_refused(text):
    with pytest.raises(UnknownModel, match="is no repository of the hub"):
        parse(text, nothing)


def test_a_file_named_twice_is_refused():
    with pytest.raises(UnknownModel, match="names a file twice"):
        parse("hf://owner/repo/a.gguf:b.gguf", nothing)


@pytest.mark.parametrize("text", ["https://example.org/", "https://example.org/model.bin", "http:///model.gguf"])
def test_a_url_of_something_else_is_refused(text):
    with pytest.raises(UnknownModel, match="not the URL of a GGUF file"):
        parse(text, nothing)


def test_a_word_that_is_nothing_gets_the_nearest_name():
    with pytest.raises(UnknownModel, match="did you mean smollm2-135m"):
        parse("smolm2-135m", nothing)
