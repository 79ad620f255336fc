"""What tests of models share: a hub of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from hyperlane.testing.hub import HubStandIn


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A hub on this machine, where the hub's own library finds it; no token is known, and nobody waits."""
    with HubStandIn() as stand_in:
        monkeypatch.setattr("hyperlane.models.hub.endpoint", lambda: stand_in.url)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("hyperlane.models.http_ranges.FIRST_PAUSE_S", 0.0)
        yield stand_in
