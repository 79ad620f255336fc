"""Who and where: identities, epochs and addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

HeadId = NewType("HeadId", bytes)
"""16 random bytes that name a head; made at its first start and kept."""


NodeId = NewType("NodeId", bytes)
"""16 random bytes that name a machine's state directory; made at its first start, bound to the machine, and kept."""


ClusterId = NewType("ClusterId", bytes)
"""16 random bytes that name a cluster; made with its certificate authority."""


TokenId = NewType("TokenId", int)
"""An index into a model's vocabulary."""


CANDIDATES_K = 64
"""How many of the largest logits the last stage returns for a wanted position unless the row asks otherwise."""


@dataclass(frozen=True, slots=True, order=True)
class Epoch:
    """The number of a plan. `counter` is 64 bits and never goes back for one head, restarts included."""

    head: HeadId
    counter: int


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a TCP port is reached. Prints as HOST:PORT, IPv6 hosts in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read HOST:PORT or [IPV6]:PORT.

        Raises:
            ValueError: the text has no port, or the port is not within 0 … 65535.

        """
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"'{text}' is not HOST:PORT; write for instance 192.168.1.20:7420 or [fe80::1]:7420")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"'{text}': write an IPv6 address in brackets, as [{host}]:{port}")
        return cls(host, int(port))
