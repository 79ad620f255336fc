"""What tests with real processes share: a tiny model, a home of their own, and a check that nothing is left behind."""

from __future__ import annotations

import pytest

from hyperlane.testing.tiny_models import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """The path of a small random model of four layers, whose answers are gibberish and always the same."""
    return str(write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf"))


@pytest.fixture(scope="session")
def session_home(tmp_path_factory):
    """Cache and state of these tests; layers in ready form are made once for all of them."""
    return tmp_path_factory.mktemp("home")
