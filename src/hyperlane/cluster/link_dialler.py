"""How a worker opens a link to the next stage: encrypted, to exactly the node that the head names.

Or plain, within this machine. Knows no stage.
"""

from __future__ import annotations

from hyperlane.cluster.machine import is_loopback
from hyperlane.cluster.trust.trust import Trust
from hyperlane.core import Address, NodeId
from hyperlane.errors import NotTrusted
from hyperlane.stage.host import Dial
from hyperlane.wire import dial
from hyperlane.wire.frame import Hello
from hyperlane.wire.peer import NodeRole
from hyperlane.wire.tcp import TcpLink
from hyperlane.wire.tls import ClientTls

TIMEOUT_S = 10.0


class LinkDialler:
    """Dials as this worker may: with its certificate, or plain and then on loopback alone."""

    def __init__(self, trust: Trust | None) -> None:
        self._trust = trust

    def __call__(self, address: Address, hello: Hello) -> TcpLink:
        """A plain link.

        Raises:
            NotTrusted: it would leave this machine, or this worker speaks to certificates only.
            HyperlaneError: as `dial.connect`.

        """
        self.check_plain(address)
        return dial.connect(address, hello, TIMEOUT_S)

    def to(self, node: NodeId) -> Dial:
        """How to dial that node, and nobody else.

        Raises:
            NotTrusted: this worker has no certificate.

        """
        tls = self.tls(node)
        return lambda address, hello: dial.connect(address, hello, TIMEOUT_S, tls=tls)

    def tls(self, node: NodeId) -> ClientTls:
        """How to encrypt towards that node, and nobody else.

        Raises:
            NotTrusted: this worker has no certificate.

        """
        if self._trust is None:
            raise NotTrusted(
                "this worker has no certificate: join it to the cluster with `hyperlane worker --join TOKEN`"
            )
        return self._trust.credentials.client_tls(NodeRole.WORKER, node, self._trust.check)

    def check_plain(self, address: Address) -> None:
        """Whether an address may be dialled in plain text.

        Raises:
            NotTrusted: it would leave this machine, or this worker speaks to certificates only.

        """
        if self._trust is not None:
            raise NotTrusted(
                f"the head named no node for the next stage at {address}; links of this worker are encrypted"
            )
        if not is_loopback(address.host):
            raise NotTrusted(
                f"a link to {address} leaves this machine, and this worker has no certificate: join it to the cluster "
                "with `hyperlane worker --join TOKEN`"
            )
