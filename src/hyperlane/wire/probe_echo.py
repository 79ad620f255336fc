"""The answering side of a measured path: every PROBE is answered as it asks, for a short time, by few threads."""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import suppress

from hyperlane import __version__
from hyperlane.errors import HyperlaneError
from hyperlane.wire.frame import Hello
from hyperlane.wire.hello import answer_to, encode_hello
from hyperlane.wire.probe_frame import Probe, ProbeReader, encode_probe
from hyperlane.wire.tls import Stream

log = logging.getLogger(__name__)

AT_ONCE = 4
"""Paths that may be measured at the same time: more would measure one another."""

WITHIN_S = 10.0
"""How long one may take, whoever asks."""

SILENCE_S = 2.0


class ProbeEcho:
    """Answers on connections whose HELLO asked for it. Every method from any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._streams: set[Stream] = set()
        self._closed = False

    def take(self, stream: Stream, hello: Hello) -> bool:
        """Take over a connection and answer its HELLO; False if there are too many, and it stays the caller's.

        Raises:
            OSError: whoever asked is gone; the stream stays the caller's.

        """
        with self._guard:
            if self._closed or len(self._streams) >= AT_ONCE:
                return False
            self._streams.add(stream)
        try:
            stream.send(encode_hello(answer_to(hello, hello.limits, __version__)))
            stream.settimeout(SILENCE_S)
        except OSError:
            self._forget(stream)
            raise
        threading.Thread(target=self._answer, args=(stream,), name="probe-echo", daemon=True).start()
        return True

    def close(self) -> None:
        """End all of them. Idempotent."""
        with self._guard:
            self._closed = True
            streams = list(self._streams)
        for stream in streams:
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

    def _answer(self, stream: Stream) -> None:
        reader, end_s = ProbeReader(stream), time.monotonic() + WITHIN_S
        try:
            while time.monotonic() < end_s:
                probe = reader.next()
                stream.sendall(encode_probe(Probe(probe.step, probe.answer_bytes)))
        except OSError:
            pass  # they have what they wanted, or are gone
        except HyperlaneError as error:
            log.info("a measured path ended: %s", error)
        finally:
            self._forget(stream)
            stream.close()

    def _forget(self, stream: Stream) -> None:
        with self._guard:
            self._streams.discard(stream)
