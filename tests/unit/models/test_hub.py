"""The hub's own library against a hub that the test makes."""

import hashlib
import random

import pytest

from hyperlane.errors import TransferError, UnknownModel
from hyperlane.models.hub import Unreachable, look_up, remote_file
from hyperlane.models.hub_choice import HubFile
from hyperlane.models.reference import HubReference
from hyperlane.testing.hub import HubStandIn

LARGE = random.Random(1).randbytes(1 << 20)
SMALL = b'{"a": 1}'
REPO = "owner/repo"
REFERENCE = HubReference(REPO)


@pytest.fixture
def repository(hub: HubStandIn):
    return hub.add(REPO, {"config.json": SMALL, "sub/m-Q4_0.gguf": LARGE})


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("hyperlane.models.hub._LONGEST_PAUSE_S", 0.0)


def large(listing) -> HubFile:
    return next(file for file in listing.files if file.path.endswith(".gguf"))


def test_a_listing_has_commit_sizes_hashes_and_licence(hub, repository):
    listing = look_up(REFERENCE)
    assert (listing.repo, listing.commit, listing.licence) == (REPO, repository.commit, "apache-2.0")
    assert large(listing) == HubFile(
        "sub/m-Q4_0.gguf", len(LARGE), hashlib.sha256(LARGE).hexdigest(), large(listing).git
    )
    small = next(file for file in listing.files if file.path == "config.json")
    assert (small.nbytes, small.sha256) == (len(SMALL), "")


def test_a_remote_file_is_pinned_to_the_commit_and_bears_its_hash(hub, repository):
    listing = look_up(REFERENCE)
    told = remote_file(listing, large(listing))
    assert told.url == f"{hub.url}/{REPO}/resolve/{repository.commit}/sub/m-Q4_0.gguf"
    assert (told.size, told.digest) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())


def test_an_unknown_repository_may_be_private_and_the_way_to_log_in_is_told(hub):
    with pytest.raises(UnknownModel, match=r"no model repository hf\.co/no/such, or it is private.*HF_TOKEN"):
        look_up(HubReference("no/such"))


def test_a_private_repository_opens_to_its_token(hub, monkeypatch):
    hub.add(REPO, {"m.gguf": LARGE}, token="hf_right")
    with pytest.raises(UnknownModel, match="private"):
        look_up(REFERENCE)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert look_up(REFERENCE).files


def test_an_unknown_revision_is_named(hub, repository):
    with pytest.raises(UnknownModel, match=r"hf\.co/owner/repo@v9: the hub knows no such branch"):
        look_up(HubReference(REPO, "v9"))


def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub, repository):
    answers = iter([429, 503])
    hub.fault = lambda _method, _path: next(answers, None)
    assert look_up(REFERENCE).files
    assert [one.status for one in hub.asked] == [429, 503, 200]


@pytest.mark.parametrize(("status", "what"), [(429, "fewer requests"), (500, "500"), (403, "HF_TOKEN")])
def test_a_hub_that_keeps_refusing_is_told_with_its_status(hub, repository, status, what):
    hub.fault = lambda _method, _path: status
    with pytest.raises(TransferError, match=what):
        look_up(REFERENCE)


def test_a_hub_that_is_not_there_is_told_with_its_address(monkeypatch, hub):
    monkeypatch.setattr("hyperlane.models.hub.endpoint", lambda: "http://127.0.0.1:1")
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:1 cannot be reached for hf\.co/owner/repo"):
        look_up(REFERENCE)
