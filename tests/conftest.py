"""What all tests share: a home of their own, and the real models, downloaded once into the usual cache."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from hyperlane import config
from hyperlane.models import catalogue
from hyperlane.models.download import pull

REAL_MODELS = {"smollm2_path", "gemma3_path"}
DOWNLOAD_TIMEOUT_S = 1800

_models_dir = config.load(config.Paths).models

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A suite started in the background by a script ignores Ctrl-C, and so would every process it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that needs a real model may have to wait for its download."""
    for item in items:
        needs_model = REAL_MODELS & set(getattr(item, "fixturenames", ()))
        if needs_model and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(DOWNLOAD_TIMEOUT_S))


@pytest.fixture(scope="session", autouse=True)
def hyperlane_home(tmp_path_factory: pytest.TempPathFactory):
    """HYPERLANE_HOME of this process and its children, so that no test reads or writes a user's state."""
    home = tmp_path_factory.mktemp("hyperlane-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERLANE_HOME", str(home))
        patch.setenv("HYPERLANE_DISCOVERY_MDNS", "no")  # tests/lan looks around, in networks of its own
        patch.setenv("HYPERLANE_SERVE_MEASURE", "never")  # it takes seconds; tests of measuring ask for it
        patch.delenv("HYPERLANE_PATHS_CACHE", raising=False)
        patch.delenv("HYPERLANE_PATHS_STATE", raising=False)
        yield home


@pytest.fixture(scope="session")
def smollm2_path(hyperlane_home: Path) -> Path:
    """The real SmolLM2-135M-Instruct."""
    return real_model("smollm2-135m", hyperlane_home)


@pytest.fixture(scope="session")
def gemma3_path(hyperlane_home: Path) -> Path:
    """The real Gemma 3 270M (the base model)."""
    return real_model("gemma3-270m", hyperlane_home)


def real_model(name: str, home: Path) -> Path:
    """Pull a model into the user's cache, where it stays, and let `home` have it too."""
    file = pull(name, _models_dir)
    shared = catalogue.required(name).path(home / "cache" / "models")
    shared.parent.mkdir(parents=True, exist_ok=True)
    if not shared.exists():
        try:
            os.link(file, shared)
        except OSError:  # another file system
            shutil.copyfile(file, shared)
    return shared
