"""Every link and every ring runs one conformance suite."""

import pytest

from hyperlane.testing.links import LINK_CHECKS
from hyperlane.testing.loopback import memory_link, memory_ring_harness, tcp_link, tcp_ring, tls_link, tls_ring
from hyperlane.testing.rings import RING_CHECKS


@pytest.mark.parametrize("make", [tcp_link, tls_link, memory_link])
@pytest.mark.parametrize("check", LINK_CHECKS, ids=lambda check: check.__name__)
def test_link(check, make):
    check(make)


@pytest.mark.parametrize("make", [tcp_ring, tls_ring, memory_ring_harness])
@pytest.mark.parametrize("check", RING_CHECKS, ids=lambda check: check.__name__)
def test_ring(check, make):
    check(make)
