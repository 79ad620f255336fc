"""One stage: an engine, and receive → engine.step → send between its two links, the same for first, middle and last.

Owns the links and the thread between them. Knows no request, no plan and no other stage; weights and KV entries
outlive the links.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from dataclasses import dataclass

from hyperlane.core import StageSpec
from hyperlane.errors import HyperlaneError, LinkClosed, LinkError, LoadFailed, ProtocolError
from hyperlane.stage.engine import Engine
from hyperlane.stage.loop import PeerFault, StageLoop
from hyperlane.stage.overlap import FROM_BYTES
from hyperlane.wire.frame import Fault, Role
from hyperlane.wire.link import Link

log = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 10.0
"""How long `close` waits for a step that runs; an engine that is still busy then is left to the process's end."""


class StageState(enum.Enum):
    """Where a stage stands."""

    LOADING = "loading"
    WAITING = "waiting for links"
    RUNNING = "running"
    FAULTED = "faulted"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class StageHealth:
    """What Health says of a stage. `still_s`: since the loop last moved; `computing`: it stands inside a step."""

    state: StageState
    still_s: float
    computing: bool = False
    steps: int = 0
    fault: str = ""


class Stage:
    """A loaded stage; its loop runs while both links are there. Every method may be called from any thread."""

    def __init__(self, spec: StageSpec, engine: Engine, name: str, overlap_bytes: int = FROM_BYTES) -> None:
        """`name` tells people in a FAULT's cause which worker this is; `overlap_bytes` as `StageLoop` has it."""
        self._overlap_bytes = overlap_bytes
        self.spec = spec
        self.engine = engine
        self._name = name
        self._guard = threading.Lock()
        self._links: dict[Role, Link] = {}
        self._reserved: set[Role] = set()
        self._loop: StageLoop | None = None
        self._thread: threading.Thread | None = None
        self._state = StageState.WAITING
        self._fault = ""

    def reserve(self, role: Role) -> None:
        """Keep the place of a link that `attach` is about to bring.

        Raises:
            ProtocolError: that place is taken, or the stage is closed.

        """
        with self._guard:
            self._check_free(role)
            if role in self._reserved:
                raise ProtocolError(f"stage {self.spec.index} is being given its {role.name.lower()} link already")
            self._reserved.add(role)

    def attach(self, role: Role, link: Link) -> None:
        """Take over a link; the loop starts when both are there.

        Raises:
            ProtocolError: it has that link already, or the stage is closed. The link stays the caller's.

        """
        with self._guard:
            self._check_free(role)
            self._reserved.discard(role)
            self._links[role] = link
            if self._links.keys() == {Role.UPSTREAM, Role.DOWNSTREAM}:
                self._start()

    def give_back(self, role: Role) -> None:
        """The link that a place was reserved for did not come about. Idempotent."""
        with self._guard:
            self._reserved.discard(role)

    def drop_links(self) -> None:
        """Wake a blocked loop and drop both links; weights and KV entries stay."""
        with self._guard:
            links = list(self._links.values())
            self._reserved.clear()
            running = self._loop is not None
            if not running:
                self._links.clear()
        for link in links:
            # A running loop closes its links itself: nothing is freed under a thread that uses it.
            link.abort() if running else link.close()

    def health(self) -> StageHealth:
        """Where the stage stands now."""
        loop = self._loop
        if loop is None:
            return StageHealth(self._state, 0.0, fault=self._fault)
        return StageHealth(self._state, time.monotonic() - loop.moved_s, loop.computing, loop.steps, self._fault)

    def close(self) -> None:
        """Drop links, weights and KV entries. Idempotent."""
        if self._end():
            self.engine.close()

    def hand_over(self) -> Engine:
        """Close the stage, but not its engine: with its weights it serves a stage of a later epoch.

        Raises:
            LoadFailed: a step does not end.

        """
        if not self._end():
            raise LoadFailed(f"stage {self.spec.index} on {self._name}: its engine hangs in a step")
        return self.engine

    def _end(self) -> bool:
        """Drop the links and wait for the loop; whether it ended."""
        with self._guard:
            self._state = StageState.CLOSED
            thread = self._thread
        self.drop_links()
        if thread is not None:
            thread.join(JOIN_TIMEOUT_S)
            if thread.is_alive():
                log.error("stage %d: its engine did not return within %g s", self.spec.index, JOIN_TIMEOUT_S)
                return False
        return True

    def _check_free(self, role: Role) -> None:
        if self._state is StageState.CLOSED:
            raise ProtocolError(f"stage {self.spec.index} of epoch {self.spec.epoch.counter} was unloaded")
        if role in self._links:
            raise ProtocolError(f"stage {self.spec.index} already has its {role.name.lower()} link")

    def _start(self) -> None:
        upstream, downstream = self._links[Role.UPSTREAM], self._links[Role.DOWNSTREAM]
        self._loop = StageLoop(self.spec, self.engine, upstream, downstream, self._overlap_bytes)
        self._state, self._fault = StageState.RUNNING, ""
        name = f"stage-{self.spec.index}-epoch-{self.spec.epoch.counter}"
        self._thread = threading.Thread(target=self._supervise, args=(self._loop, downstream), name=name, daemon=True)
        self._thread.start()

    def _supervise(self, loop: StageLoop, downstream: Link) -> None:
        """The supervisor of the loop: whatever ends it, the next stage hears of it and the links are dropped."""
        try:
            loop.run()
        except LinkClosed:
            self._drop(StageState.WAITING)
        except PeerFault as peer:
            self._tell(downstream, peer.fault)
            self._drop(StageState.FAULTED, peer.fault.cause)
        except Exception as error:
            if not isinstance(error, HyperlaneError):
                log.exception("stage %d: its loop failed", self.spec.index)
            cause = f"stage {self.spec.index} on {self._name}: {str(error) or type(error).__name__}"
            self._tell(downstream, Fault(self.spec.epoch.counter, loop.step, self.spec.index, cause))
            self._drop(StageState.FAULTED, cause)

    @staticmethod
    def _tell(downstream: Link, fault: Fault) -> None:
        try:
            downstream.send(fault)
        except LinkError as error:
            log.info("a fault could not be passed on (%s): %s", error, fault.cause)

    def _drop(self, state: StageState, fault: str = "") -> None:
        with self._guard:
            links = list(self._links.values())
            self._links.clear()
            self._loop = self._thread = None
            self._fault = fault
            if self._state is not StageState.CLOSED:
                self._state = state
        for link in links:
            link.close()
