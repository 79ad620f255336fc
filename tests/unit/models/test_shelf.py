"""Downloading from a hub and a web server that the test makes: resumed, checked, found again, listed, removed."""

import hashlib
import random
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from hyperlane.errors import TransferError, UnknownModel
from hyperlane.models.catalogue import CATALOGUE
from hyperlane.models.digests import WHOLE, DigestCache, FileState
from hyperlane.models.hub import Unreachable
from hyperlane.models.reference import HubReference, UrlReference
from hyperlane.models.remote_model import RemoteModel
from hyperlane.models.resolve import Library, copy_of
from hyperlane.models.shelf import PAPERS, Shelf
from hyperlane.testing.hub import HubStandIn

LARGE = random.Random(2).randbytes(1 << 20)
OTHER = random.Random(3).randbytes(300_000)
REPO = "owner/repo"
Q4, Q8 = HubReference(REPO, pick="Q4_0"), HubReference(REPO, pick="Q8_0")
CHECKPOINT = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": OTHER,
    "README.md": b"about",
    "pytorch_model.bin": LARGE,
}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def shelf(models: Path) -> Shelf:
    return Shelf(models)


@pytest.fixture
def repository(hub: HubStandIn):
    return hub.add(REPO, {"sub/m-Q4_0.gguf": LARGE, "m-Q8_0.gguf": OTHER, "README.md": b"about"})


@pytest.fixture
def nobody(monkeypatch):
    """The hub is not there."""

    def go() -> None:
        monkeypatch.setattr("hyperlane.models.hub.endpoint", lambda: "http://127.0.0.1:1")

    return go


def break_off(hub: HubStandIn, *answers: int) -> None:
    """What the storage does to the next requests; then it is well again."""
    left = iter(answers)
    hub.fault = lambda _method, path: next(left, None) if path.startswith("/storage/") else None


# --- bringing ------------------------------------------------------------------------------------------------


def test_a_file_is_brought_whole_under_its_own_name(hub, repository, shelf):
    path = shelf.bring(Q4)
    assert path.name == "m-Q4_0.gguf"
    assert path.read_bytes() == LARGE


def test_a_second_time_asks_for_no_byte(hub, repository, shelf):
    path = shelf.bring(Q4)
    sent = hub.bytes_sent(".gguf")
    assert shelf.bring(Q4) == path
    assert hub.bytes_sent(".gguf") == sent == len(LARGE)


def test_a_new_commit_with_the_same_file_asks_for_no_byte_and_a_changed_file_is_brought(hub, repository, shelf):
    path = shelf.bring(Q4)
    sent = hub.bytes_sent(".gguf")
    repository.commit = "d" * 40
    assert shelf.bring(Q4) == path
    assert hub.bytes_sent(".gguf") == sent
    repository.files["sub/m-Q4_0.gguf"] = OTHER
    assert shelf.bring(Q4).read_bytes() == OTHER
    assert path.read_bytes() == LARGE


def test_a_checkpoint_is_brought_without_what_is_not_read(hub, shelf):
    hub.add(REPO, CHECKPOINT)
    folder = shelf.bring(HubReference(REPO))
    here = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert here == {"config.json", "tokenizer.json", "model.safetensors"}
    assert all((folder / name).read_bytes() == CHECKPOINT[name] for name in here)


def test_progress_counts_to_the_total_and_never_back(hub, shelf):
    hub.add(REPO, CHECKPOINT)
    told: list[tuple[int, int]] = []
    shelf.bring(HubReference(REPO), lambda done, total: told.append((done, total)))
    total = sum(len(CHECKPOINT[name]) for name in ("config.json", "tokenizer.json", "model.safetensors"))
    assert told == sorted(told)
    assert told[-1] == (total, total)


def test_a_broken_download_goes_on_where_it_ended(hub, repository, shelf, models):
    break_off(hub, -600_000, 404)
    with pytest.raises(TransferError):
        shelf.bring(Q4)
    assert shelf.kept() == []
    assert shelf.bring(Q4).read_bytes() == LARGE
    assert hub.bytes_sent(".gguf") == len(LARGE)
    assert not list(models.rglob("*.partial"))


@pytest.fixture
def small_pieces(monkeypatch):
    """As if the files were large."""
    monkeypatch.setattr("hyperlane.models.whole_file.PIECE_BYTES", 50_000)


def test_a_large_file_comes_over_several_connections_in_order(hub, repository, shelf, small_pieces):
    busy, most = set(), []
    guard = threading.Lock()

    def count(_method: str, path: str) -> None:
        if path.startswith("/storage/"):
            with guard:
                busy.add(threading.get_ident())
                most.append(len(busy))

    hub.fault = count
    told: list[int] = []
    assert shelf.bring(Q4, lambda done, _total: told.append(done)).read_bytes() == LARGE
    assert hub.bytes_sent(".gguf") == len(LARGE)
    assert told == sorted(told)
    assert max(most) > 1


def test_a_large_file_that_broke_off_goes_on_where_it_was_whole(hub, repository, shelf, small_pieces):
    left = iter([None] * 8)
    hub.fault = lambda _method, path: next(left, 404) if path.startswith("/storage/") else None
    with pytest.raises(TransferError):
        shelf.bring(Q4)
    begun = hub.bytes_sent(".gguf")
    assert 0 < begun <= 8 * 50_000
    hub.fault = None
    assert shelf.bring(Q4).read_bytes() == LARGE
    assert hub.bytes_sent(".gguf") <= len(LARGE) + 4 * 50_000


def test_a_large_file_of_a_server_without_ranges_comes_whole(hub, repository, shelf, small_pieces):
    hub.ranges = False
    assert shelf.bring(UrlReference(f"{hub.storage}/storage/{REPO}/sub/m-Q4_0.gguf")).read_bytes() == LARGE


def test_a_damaged_beginning_is_noticed_and_fetched_anew(hub, repository, shelf, models):
    break_off(hub, -600_000, 404)
    with pytest.raises(TransferError):
        shelf.bring(Q4)
    (begun,) = models.rglob("*.partial")
    begun.write_bytes(b"x" * begun.stat().st_size)
    assert shelf.bring(Q4).read_bytes() == LARGE


def test_a_beginning_of_another_version_is_not_continued(hub, repository, shelf):
    break_off(hub, -600_000, 404)
    with pytest.raises(TransferError):
        shelf.bring(Q4)
    repository.files["sub/m-Q4_0.gguf"] = OTHER
    assert shelf.bring(Q4).read_bytes() == OTHER


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_content_that_is_not_what_the_hub_lists_is_refused_and_not_kept(hub, shelf, models, monkeypatch, name):
    repository = hub.add(REPO, CHECKPOINT)
    lying = dict(repository.files)
    found = shelf.locate(HubReference(REPO))
    assert isinstance(found, RemoteModel)

    def swap(_method: str, path: str) -> None:
        if "/resolve/" in path or path.startswith("/storage/"):
            repository.files = lying | {name: bytes(reversed(CHECKPOINT[name]))}

    hub.fault = swap
    with pytest.raises(TransferError, match=r"another (content|hash)"):
        shelf.bring(HubReference(REPO))
    assert not list(models.rglob(PAPERS))
    assert not [path for path in models.rglob(f"*{name}*") if path.stat().st_size]


@pytest.mark.parametrize("token", ["", "hf_of_somebody_else"])
def test_a_gated_repository_says_how_to_log_in_and_opens_to_a_granted_token(hub, shelf, monkeypatch, token):
    hub.add(REPO, {"m.gguf": LARGE}, token="hf_granted", gated=True)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(TransferError, match=r"refuses it .*hf auth login.*HF_TOKEN"):
        shelf.bring(HubReference(REPO))
    monkeypatch.setenv("HF_TOKEN", "hf_granted")
    assert shelf.bring(HubReference(REPO)).read_bytes() == LARGE


def test_too_little_disk_space_is_told_before_the_download(hub, repository, shelf, monkeypatch):
    monkeypatch.setattr("hyperlane.models.whole_file.shutil.disk_usage", lambda _path: SimpleNamespace(free=1000))
    with pytest.raises(TransferError, match=r"MB free on its disk, 1 MB are needed.*HYPERLANE_HOME"):
        shelf.bring(Q4)
    assert hub.bytes_sent(".gguf") == 0


def test_a_folder_that_cannot_be_made_is_a_transfer_error(hub, repository, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TransferError, match="cannot be stored"):
        Shelf(tmp_path / "file").bring(Q4)


def test_the_hash_of_what_was_checked_is_not_computed_again(hub, repository, models, tmp_path):
    digests = DigestCache(tmp_path / "digests")
    path = Shelf(models, digests).bring(Q4)
    assert digests.load(FileState.of(path, path.stat())) == {WHOLE: hashlib.sha256(LARGE).hexdigest()}


def test_those_who_bring_at_once_all_get_the_file_and_it_is_sent_once(hub, repository, models):
    start, paths = threading.Barrier(4), []

    def bring() -> None:
        start.wait()
        paths.append(Shelf(models).bring(Q4))

    threads = [threading.Thread(target=bring) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert {path.read_bytes() for path in paths} == {LARGE}
    assert hub.bytes_sent(".gguf") == len(LARGE)


# --- a URL ---------------------------------------------------------------------------------------------------


@pytest.fixture
def url(hub, repository) -> UrlReference:
    return UrlReference(f"{hub.storage}/storage/{REPO}/sub/m-Q4_0.gguf")


def test_a_url_is_brought_and_found_again(hub, shelf, url):
    path = shelf.bring(url)
    assert (path.name, path.read_bytes()) == ("m-Q4_0.gguf", LARGE)
    sent = hub.bytes_sent(".gguf")
    assert shelf.bring(url) == path
    assert hub.bytes_sent(".gguf") <= sent + 1


def test_a_url_whose_file_was_replaced_is_brought_anew(hub, repository, shelf, url):
    shelf.bring(url)
    repository.files["sub/m-Q4_0.gguf"] = OTHER
    assert shelf.bring(url).read_bytes() == OTHER


def test_a_server_without_ranges_gives_the_file_whole_and_a_broken_one_from_its_beginning(hub, shelf, url):
    hub.ranges = False
    break_off(hub, 0, -600_000, 404)
    with pytest.raises(TransferError):
        shelf.bring(url)
    assert shelf.bring(url).read_bytes() == LARGE


# --- elsewhere, and offline ----------------------------------------------------------------------------------


def test_a_model_that_is_not_here_is_located_at_its_commit_with_its_hash(hub, repository, shelf):
    found = shelf.locate(Q4)
    assert isinstance(found, RemoteModel)
    assert (found.name, found.is_checkpoint, found.paths) == ("m-Q4_0.gguf", False, ("sub/m-Q4_0.gguf",))
    (file,) = (wanted.remote for wanted in found.wanted)
    assert (file.size, file.digest) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())
    assert repository.commit in file.url
    assert hub.bytes_sent(".gguf") == 0
    path = shelf.bring(Q4)
    assert shelf.locate(Q4) == path


def test_with_the_hub_gone_the_copy_that_is_here_is_used(hub, repository, shelf, nobody, caplog):
    path = shelf.bring(Q4)
    nobody()
    assert shelf.bring(Q4) == shelf.locate(Q4) == path
    assert "the copy on this machine is used" in caplog.text
    with pytest.raises(Unreachable, match="cannot be reached"):
        shelf.bring(Q8)
    with pytest.raises(Unreachable):
        shelf.bring(HubReference("another/repo"))


def test_with_the_hub_gone_a_model_that_was_looked_at_is_where_it_was(hub, repository, shelf, models, nobody, caplog):
    hub.add("owner/checkpoint", CHECKPOINT)
    references = [Q4, HubReference("owner/checkpoint")]
    seen = [shelf.locate(reference) for reference in references]
    nobody()
    assert [shelf.locate(reference) for reference in references] == seen
    assert "what was read of it before is used" in caplog.text
    with pytest.raises(Unreachable):
        shelf.locate(Q8)
    with pytest.raises(TransferError, match="--offline"):
        Shelf(models, offline=True).locate(Q4)
    for kept in (models / "seen").iterdir():
        kept.write_text('{"wanted": 3}')
    with pytest.raises(Unreachable):
        shelf.locate(Q4)


def test_offline_nobody_is_asked(hub, repository, shelf, models):
    path = shelf.bring(Q4)
    asked = len(hub.asked)
    offline = Shelf(models, offline=True)
    assert offline.bring(Q4) == path
    assert offline.bring(HubReference(REPO)) == path
    assert offline.bring(HubReference(REPO, repository.commit[:10], "Q4_0")) == path
    with pytest.raises(TransferError, match=r"hf\.co/owner/repo:Q8_0 is not on this machine, and --offline"):
        offline.bring(Q8)
    with pytest.raises(TransferError, match="--offline"):
        offline.bring(HubReference(REPO, "v2", "Q4_0"))
    assert len(hub.asked) == asked


def test_offline_a_reference_that_means_several_is_answered_with_those_that_are_here(hub, repository, shelf, models):
    shelf.bring(Q4)
    shelf.bring(Q8)
    with pytest.raises(UnknownModel, match=r"as far as it is on this machine.*:Q4_0 .*:Q8_0"):
        Shelf(models, offline=True).bring(HubReference(REPO))


def test_offline_the_newest_version_is_used(hub, repository, shelf, models):
    shelf.bring(Q4)
    repository.files["sub/m-Q4_0.gguf"] = OTHER
    repository.commit = "d" * 40
    newer = shelf.bring(Q4)
    assert Shelf(models, offline=True).bring(Q4) == newer


def test_a_copy_is_known_by_the_hash_that_the_hub_states_wherever_it_came_from(hub, repository, shelf, models, url):
    library = Library(models)
    digest = hashlib.sha256(LARGE).hexdigest()
    assert copy_of(digest, library) is None
    path = shelf.bring(url)
    assert copy_of(digest, library) == path
    entry = CATALOGUE[0]
    with entry.path(models).open("wb") as file:
        file.truncate(entry.nbytes)
    assert copy_of(entry.sha256, library) == entry.path(models)
    assert copy_of("0" * 64, library) is None
