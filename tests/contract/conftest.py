"""What tests of encrypted ports share: two clusters, and what is logged."""

from __future__ import annotations

import logging

import pytest

from hyperlane.testing.trust import TrustedPair


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> TrustedPair:
    """A head and a worker of one cluster."""
    return TrustedPair(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> TrustedPair:
    """Another cluster."""
    return TrustedPair(tmp_path_factory.mktemp("other"))


@pytest.fixture
def heard(caplog) -> None:
    """Refusals are logged as news, not as warnings."""
    caplog.set_level(logging.INFO)
