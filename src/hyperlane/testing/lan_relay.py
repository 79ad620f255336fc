"""A network cable with delay, jitter, loss, rate, cut and heal, for kernels without netem. Linux and root alone.

A process between two TAP devices: one becomes a host's interface, the other a port of the switch. Frames cross whole
(with the kernel's segmentation offload, up to 64 KiB at once) and in order. Knows nothing above Ethernet.
"""

from __future__ import annotations

import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_OFFLOADS = 0x01 | 0x02 | 0x04  # checksums, TCP segments over IPv4 and IPv6
_VNET_HEADER = struct.Struct("<BBHHHH")
_MAX_FRAME = 1 << 17
_ETHERNET_BYTES = 24
"""What a frame takes on a cable besides itself: preamble, checksum and gap."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a cable behaves in each direction. `loss`: of 0 … 1; `queue_bytes`: more than that waiting is dropped."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    rate_mbit: float = 0.0
    cut: bool = False
    queue_bytes: int = 4 << 20


class Relay:
    """The process, and the way to tell it another shape."""

    def __init__(self, namespace: str, port: str, tap: str, shape: Shape) -> None:
        """Make the devices `port` and `tap` in a namespace; from there they may be moved."""
        words = ["ip", "netns", "exec", namespace, sys.executable, "-m", __spec__.name, port, tap]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self.close()
            raise AssertionError("the relay did not start; is there /dev/net/tun?")
        self.set(shape)

    def set(self, shape: Shape) -> None:
        """From now on behave so; returns when it does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(shape)) + "\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def close(self) -> None:
        """End the process; its devices are gone with it. Idempotent."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


@dataclass(slots=True)
class Direction:
    """Frames on their way from one end to the other: what waits, until when, and when the cable is free again."""

    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    waiting_bytes: int = 0
    free_at_s: float = 0.0
    last_at_s: float = 0.0

    def take(self, frame: bytes, shape: Shape, now_s: float, rng: random.Random) -> None:
        """A frame enters the cable, or is lost."""
        full = self.waiting_bytes + len(frame) > shape.queue_bytes
        if shape.cut or full or (shape.loss and rng.random() < shape.loss):
            return
        if shape.rate_mbit:
            self.free_at_s = max(self.free_at_s, now_s) + wire_bytes(frame) * 8e-6 / shape.rate_mbit
        else:
            self.free_at_s = now_s
        jitter_s = rng.uniform(0.0, shape.jitter_ms) / 1e3
        # A cable does not reorder: a frame that would overtake waits for the one before it.
        self.last_at_s = max(self.last_at_s, self.free_at_s + shape.delay_ms / 1e3 + jitter_s)
        self.waiting.append((self.last_at_s, frame))
        self.waiting_bytes += len(frame)

    def due(self, now_s: float) -> bytes | None:
        """The next frame that has arrived at the other end."""
        if not self.waiting or self.waiting[0][0] > now_s:
            return None
        frame = self.waiting.popleft()[1]
        self.waiting_bytes -= len(frame)
        return frame


def wire_bytes(frame: bytes) -> int:
    """What a frame, with its offload header, takes on a cable when it is cut into packets."""
    size = len(frame) - _VNET_HEADER.size
    _, kind, header, segment, _, _ = _VNET_HEADER.unpack_from(frame)
    packets = max(1, -(-(size - header) // segment)) if kind and segment else 1
    return int(size + (packets - 1) * header + packets * _ETHERNET_BYTES)


def _open_tap(name: str) -> int:
    import fcntl  # not on Windows, where the rest of this module can be imported

    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _OFFLOADS)
    return descriptor


def _relay(port: str, tap: str) -> None:
    ends = (_open_tap(port), _open_tap(tap))
    lanes = (Direction(), Direction())
    shape, rng = Shape(), random.Random()
    print("ready", flush=True)
    while True:
        due_s = min((lane.waiting[0][0] for lane in lanes if lane.waiting), default=None)
        patience_s = None if due_s is None else max(0.0, due_s - time.monotonic())
        readable, _, _ = select.select([0, *ends], [], [], patience_s)
        if 0 in readable:
            line = sys.stdin.readline()
            if not line:
                return
            shape = Shape(**json.loads(line))
            print("set", flush=True)
        for index in (0, 1):
            if ends[index] in readable:
                _drain(ends[index], lanes[index], shape, rng)
            while (frame := lanes[index].due(time.monotonic())) is not None:
                _send(ends[1 - index], frame)


def _drain(descriptor: int, lane: Direction, shape: Shape, rng: random.Random) -> None:
    for _ in range(16):
        try:
            frame = os.read(descriptor, _MAX_FRAME)
        except OSError:  # nothing more, or the interface is down
            return
        lane.take(frame, shape, time.monotonic(), rng)


def _send(descriptor: int, frame: bytes) -> None:
    try:
        os.write(descriptor, frame)
    except OSError:  # the interface is down, or its queue is full: the frame is lost
        return


if __name__ == "__main__":
    _relay(sys.argv[1], sys.argv[2])
