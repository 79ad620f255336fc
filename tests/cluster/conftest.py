"""What tests with real processes share: a tiny model."""

from __future__ import annotations

import pytest

from hyperlane.testing.tiny_models import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """The path of a small random model of four layers, whose answers are gibberish and always the same."""
    return str(write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf"))
