"""The asking side of a measured path: round trip and bandwidth of one address, over what real links go over."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from hyperlane.core import Address, HeadId
from hyperlane.errors import LinkBroken
from hyperlane.wire.dial import dial
from hyperlane.wire.probe_frame import MAX_PAYLOAD_BYTES, Probe, ProbeReader, encode_probe, probe_hello
from hyperlane.wire.tls import ClientTls, Stream

DIAL_TIMEOUT_S = 3.0
SILENCE_S = 3.0
"""A path that takes longer for a single answer is no path for tokens."""

PING_BYTES = 64
WARM_PINGS = 3
PINGS = 40
PING_S = 0.2
"""So many round trips, and so long, at most."""

PAUSE_S = 2e-3
"""Before each: the frames of tokens come apart, and an end that slept since the last one takes longer to answer."""

BANDWIDTH_S = 0.3
MOST_BYTES = 64 << 20
"""Per direction, the first of the two that is reached."""

ROUND_TRIPS = 20
LONGEST_S = 1.0
"""A long path is measured for so many round trips, as windows take some to grow; but no longer than this."""

SMALL, LARGE = 1 << 14, MAX_PAYLOAD_BYTES
"""Bytes of the frames on paths that are slow, and as soon as one is known not to be."""

FIRST_WINDOW = 1 << 17
LARGEST_WINDOW = 1 << 23
UNTIL_STEADY = 0.35
"""Part of a measurement that does not count: windows grow, and shapers let a burst pass."""


@dataclass(frozen=True, slots=True)
class PathCost:
    """What was measured on one address.

    `rtt_s`: median there and back of a small frame. `out_bytes_per_s`: towards the address; `in_bytes_per_s`: back
    from it, 0 where it was not asked for.
    """

    rtt_s: float
    out_bytes_per_s: float
    in_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """`count` bytes were there after `at_s` seconds."""

    at_s: float
    count: int


def measure_path(address: Address, head: HeadId, tls: ClientTls | None = None, *, both_ways: bool = False) -> PathCost:
    """Measure the path to a data port; takes well below a second a direction. Blocks.

    Raises:
        WorkerUnreachable: nothing answers there.
        LinkBroken: it refuses, or ended the connection; the message has why.
        NotTrusted: one of the two sides does not trust the other's certificate.
        ProtocolError, VersionMismatch: what answers is of another kind or version.

    """
    stream, _ = dial(address, probe_hello(head), DIAL_TIMEOUT_S, tls=tls)
    try:
        stream.settimeout(SILENCE_S)
        path = _Path(stream)
        rtt_s = path.rtt_s()
        out = path.bytes_per_s(rtt_s, back=False)
        back = path.bytes_per_s(rtt_s, back=True) if both_ways else 0.0
        return PathCost(rtt_s, out, back)
    except OSError as error:
        raise LinkBroken(f"the path to {address} failed while it was measured: {error.strerror or error}") from error
    finally:
        stream.close()


class _Path:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._reader = ProbeReader(stream)

    def rtt_s(self) -> float:
        ping = encode_probe(Probe(0, PING_BYTES, PING_BYTES))
        times: list[float] = []
        end_s = math.inf
        while len(times) < PINGS + WARM_PINGS and (len(times) <= WARM_PINGS or time.perf_counter() < end_s):
            time.sleep(PAUSE_S)
            began_s = time.perf_counter()
            self._stream.sendall(ping)
            self._reader.next()
            times.append(time.perf_counter() - began_s)
            end_s = min(end_s, began_s + PING_S)
        return statistics.median(times[WARM_PINGS:])

    def bytes_per_s(self, rtt_s: float, *, back: bool) -> float:
        """Frames, or answers, so many under way that the path is full, and no more than it empties soon."""
        enough_s = min(LONGEST_S, max(BANDWIDTH_S, ROUND_TRIPS * rtt_s))
        frames = {size: encode_probe(Probe(0, 0, size) if back else Probe(0, size)) for size in (SMALL, LARGE)}
        arrivals, under_way, window = [Arrival(0.0, 0)], deque[int](), FIRST_WINDOW
        began_s = time.perf_counter()
        while not (is_enough := _is_enough(arrivals[-1], enough_s)) or under_way:
            size = LARGE if window > FIRST_WINDOW else SMALL
            while not is_enough and sum(under_way) < window:
                self._stream.sendall(frames[size])
                under_way.append(size)
            self._reader.next()
            arrivals.append(Arrival(time.perf_counter() - began_s, arrivals[-1].count + under_way.popleft()))
            window = wider(window, arrivals[-1], rtt_s)
        return steady_rate(arrivals)


def _is_enough(last: Arrival, enough_s: float) -> bool:
    return last.at_s >= enough_s or last.count >= MOST_BYTES


def wider(window: int, last: Arrival, rtt_s: float) -> int:
    """Doubled while so much passes soon, or in two round trips: the path must be full, but not for long."""
    soon = window < last.count and window < last.count / last.at_s * max(BANDWIDTH_S / 20, 2 * rtt_s)
    return min(2 * window, LARGEST_WINDOW) if soon else window


def steady_rate(arrivals: Sequence[Arrival]) -> float:
    """Bytes per second from when it is steady to the end; over all of it where that is too little to say."""
    last = arrivals[-1]
    later = [one for one in arrivals if one.at_s >= UNTIL_STEADY * last.at_s]
    first = later[0] if len(later) > 2 else arrivals[0]
    return (last.count - first.count) / max(last.at_s - first.at_s, 1e-9)
