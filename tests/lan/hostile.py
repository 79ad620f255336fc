"""A stranger on the LAN: thousands of adverts that make no sense, false ones that point elsewhere, and plain noise."""

from __future__ import annotations

import asyncio
import os
import random
import socket

from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from hyperlane.cluster.discovery.advert import SERVICE, Advert, NodeKind, txt_of
from hyperlane.core import NodeId

MDNS = ("224.0.0.251", 5353)


def info(number: int, txt: dict, address: str) -> ServiceInfo:
    return ServiceInfo(
        SERVICE,
        f"evil-{number}.{SERVICE}",
        port=7420,
        properties=txt,
        server=f"evil-{number}.local.",
        addresses=[socket.inet_aton(address)],
    )


async def main(address: str, cluster: str) -> None:
    rng = random.Random(7)
    stack = AsyncZeroconf(interfaces=[address])
    good = txt_of(Advert(NodeId(os.urandom(16)), "b" * 16, cluster, "x", NodeKind.WORKER, "0.1.0", 1, 7420))
    for number in range(900):
        if number % 3 == 0:
            txt, where = {rng.randbytes(5).hex(): rng.randbytes(40) for _ in range(4)}, address
        elif number % 3 == 1:
            txt, where = {**good, "node": rng.randbytes(16).hex()}, "203.0.113.9"  # elsewhere on the internet
        else:
            txt, where = {**good, "node": rng.randbytes(16).hex(), "name": "\x1b[2J" * 5}, address
        await stack.async_register_service(info(number, txt, where), cooperating_responders=True)
    print("advertised", flush=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
        noise.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        for _ in range(2000):
            noise.sendto(rng.randbytes(rng.randrange(1, 1200)), MDNS)
            await asyncio.sleep(0)
    print("noisy", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    import sys

    asyncio.run(main(*sys.argv[1:]))
