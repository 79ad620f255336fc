"""Byte ranges from a hub and a web server that the test makes, over real connections."""

import hashlib
import random
import threading

import pytest

from hyperlane.errors import TransferError
from hyperlane.models import http_ranges
from hyperlane.models.http_ranges import HttpRanges, NoRanges, look_at, open_ranges
from hyperlane.models.ranges import RemoteFile
from hyperlane.testing.hub import HubStandIn

CONTENT = random.Random(0).randbytes(1 << 20)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
REPO = "owner/repo"


@pytest.fixture
def file(hub: HubStandIn) -> RemoteFile:
    """A large file of the hub, at a commit."""
    repository = hub.add(REPO, {"m.gguf": CONTENT})
    return RemoteFile(f"{hub.url}/{REPO}/resolve/{repository.commit}/m.gguf", len(CONTENT), DIGEST)


@pytest.fixture
def plain(hub: HubStandIn) -> str:
    """The address of the same file on a plain web server."""
    hub.add(REPO, {"m.gguf": CONTENT})
    return f"{hub.storage}/storage/{REPO}/m.gguf"


def test_a_range_is_exactly_what_was_asked_for_and_nothing_else_is_sent(hub, file):
    with open_ranges(file) as ranges:
        assert (ranges.size, ranges.digest) == (len(CONTENT), DIGEST)
        assert ranges.read(1000, 5000) == CONTENT[1000:6000]
        assert ranges.read(len(CONTENT) - 7, 7) == CONTENT[-7:]
        assert ranges.read(0, 0) == b""
    assert hub.bytes_sent("m.gguf") == 5007


def test_where_the_hub_redirects_to_is_asked_directly_the_next_time(hub, file):
    with open_ranges(file) as ranges:
        for begin in range(0, 50_000, 10_000):
            assert ranges.read(begin, 10_000) == CONTENT[begin : begin + 10_000]
    assert sum(one.status == 302 for one in hub.asked) == 1


def test_an_address_that_has_run_out_is_asked_for_anew(hub, file):
    expired = iter([False, True, False])
    hub.fault = lambda _method, path: 403 if path.startswith("/storage/") and next(expired) else None
    with open_ranges(file) as ranges:
        assert ranges.read(0, 10) == CONTENT[:10]
        assert ranges.read(10, 10) == CONTENT[10:20]
    assert sum(one.status == 302 for one in hub.asked) == 2


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, file):
    faults = iter([-70_000, -1, -200_000, 503, 429, None])
    hub.fault = lambda _method, path: next(faults) if path.startswith("/storage/") else None
    with open_ranges(file) as ranges:
        assert ranges.read(100, 900_000) == CONTENT[100:900_100]
    assert hub.bytes_sent("m.gguf") == 900_000


def test_a_server_that_fails_every_time_is_given_up_with_its_answer(hub, file):
    hub.fault = lambda _method, _path: 503
    with open_ranges(file) as ranges, pytest.raises(TransferError, match=r"6 times in a row: the server answered 503"):
        ranges.read(0, 10)
    assert len(hub.asked) == http_ranges.TRIES


def test_an_address_where_nobody_is_is_given_up(hub, monkeypatch):
    with (
        open_ranges(RemoteFile("http://127.0.0.1:1/m.gguf", 10)) as ranges,
        pytest.raises(TransferError, match="6 times"),
    ):
        ranges.read(0, 10)


@pytest.mark.parametrize(
    ("status", "what"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "not there"), (410, "not there")]
)
def test_a_refusal_is_final_and_says_what_to_do(hub, file, status, what):
    hub.fault = lambda _method, _path: status
    with open_ranges(file) as ranges, pytest.raises(TransferError, match=what):
        ranges.read(0, 10)
    assert len(hub.asked) == 1


def test_the_token_goes_to_the_hub_and_not_to_the_storage(hub, file, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with open_ranges(file) as ranges:
        ranges.read(0, 10)
    assert [(one.status, one.authorised) for one in hub.asked] == [(302, True), (200, False)]


def test_the_token_goes_to_no_other_server(hub, plain, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    look_at(plain)
    monkeypatch.setattr("hyperlane.models.hub.endpoint", lambda: "https://huggingface.co")
    look_at(plain)
    assert [one.authorised for one in hub.asked] == [False, False]


def test_a_file_that_the_hub_has_replaced_is_noticed(hub, file):
    hub.repositories[REPO].files["m.gguf"] = b"x" + CONTENT[1:]
    with open_ranges(file) as ranges, pytest.raises(TransferError, match=r"not the file any more.*another hash"):
        ranges.read(0, 10)


def test_a_web_server_tells_size_and_version(hub, plain):
    told = look_at(plain)
    assert (told.size, told.digest) == (len(CONTENT), "")
    assert told.etag.startswith('"stored-')
    assert hub.bytes_sent() <= 1


@pytest.mark.parametrize("content", [b"y" + CONTENT[1:], CONTENT[:-1], CONTENT + b"z"])
def test_a_file_that_a_web_server_has_replaced_is_noticed_in_the_middle(hub, plain, content):
    with open_ranges(look_at(plain)) as ranges:
        assert ranges.read(0, 100) == CONTENT[:100]
        hub.repositories[REPO].files["m.gguf"] = content
        with pytest.raises(TransferError, match="not the file any more"):
            ranges.read(100, 100)


def test_a_server_without_tags_is_still_watched_for_the_size(hub, plain):
    with open_ranges(RemoteFile(plain, len(CONTENT) - 1)) as ranges, pytest.raises(TransferError, match="bytes now"):
        ranges.read(100, 100)


def test_a_server_that_gives_whole_files_only_is_named(hub, plain):
    hub.ranges = False
    with open_ranges(look_at(plain)) as ranges:
        with pytest.raises(NoRanges, match=r"does not give parts of files.*hyperlane pull"):
            ranges.read(100, 100)
        assert ranges.read(0, len(CONTENT)) == CONTENT


def test_nothing_beyond_the_file_is_asked_for(hub, file):
    with open_ranges(file) as ranges:
        for offset, length in ((-1, 5), (0, -1), (len(CONTENT), 1), (0, len(CONTENT) + 1)):
            with pytest.raises(TransferError, match="bytes, none at"):
                ranges.read(offset, length)
    assert hub.asked == []


def test_a_redirect_to_no_web_address_is_refused(hub, file, monkeypatch):
    monkeypatch.setattr(HubStandIn, "storage", "file:///etc/passwd?")
    with open_ranges(file) as ranges, pytest.raises(TransferError, match="no web address"):
        ranges.read(0, 10)


def test_threads_read_at_once(hub, file):
    found: dict[int, bytes] = {}
    with HttpRanges(file) as ranges:
        threads = [
            threading.Thread(target=lambda begin=begin: found.update({begin: ranges.read(begin, 50_000)}))
            for begin in range(0, 1_000_000, 50_000)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 20
    assert all(CONTENT[begin : begin + 50_000] == part for begin, part in found.items())


def test_closing_ends_a_wait_for_the_next_try(hub, file, monkeypatch):
    monkeypatch.setattr(http_ranges, "FIRST_PAUSE_S", 60.0)
    failed = threading.Event()

    def fault(_method: str, _path: str) -> int:
        failed.set()
        return 503

    hub.fault = fault
    ranges, raised = open_ranges(file), []

    def read() -> None:
        try:
            ranges.read(0, 10)
        except TransferError as error:
            raised.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    assert failed.wait(10)
    ranges.close()
    thread.join(10)
    assert raised
    assert "given up" in raised[0]
