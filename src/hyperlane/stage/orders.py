"""What a head asks of a worker and what the worker answers, as data. Knows no message format."""

from __future__ import annotations

from dataclasses import dataclass

from hyperlane.core import Address, Epoch, NodeId, StageSpec
from hyperlane.models.ranges import RemoteFile, TensorPlace
from hyperlane.stage.stage import StageHealth


@dataclass(frozen=True, slots=True)
class StageKey:
    """What a stage is called on a worker."""

    epoch: Epoch
    index: int

    def __str__(self) -> str:
        return f"stage {self.index} of epoch {self.epoch.counter}"


@dataclass(frozen=True, slots=True)
class TensorPeer:
    """A worker that may hold tensors. `node`: whom its certificate must name; None: plain, on this machine."""

    address: Address
    node: NodeId | None = None


@dataclass(frozen=True, slots=True)
class WeightSources:
    """Where a stage's weights come from: a file that this worker can open; else, piece by piece, from the others.

    `tensors`: of this stage, with their digests. `peers` may hold some of them; `server` (which asks for `token`) is
    the head's; `files` are the hub's, as `TensorPlace.file` counts them.
    """

    path_hint: str = ""
    server: Address | None = None
    token: str = ""
    tensors: tuple[TensorPlace, ...] = ()
    peers: tuple[TensorPeer, ...] = ()
    files: tuple[RemoteFile, ...] = ()


@dataclass(frozen=True, slots=True)
class LinkPeers:
    """Who may open a stage's encrypted links: the head that loads it, and the node of the stage before it.

    `before` is None for the first stage, whose incoming link is the head's.
    """

    head: NodeId
    before: NodeId | None = None


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """A stage to load, with the bytes that the plan counted for it. `peers` None: its links are plain, from here.

    `held`: a stage of an earlier epoch that is the same but for its place in the ring: its engine serves on.
    """

    spec: StageSpec
    weights: WeightSources
    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int
    peers: LinkPeers | None = None
    held: StageKey | None = None

    @property
    def key(self) -> StageKey:
        """What the stage will be called."""
        return StageKey(self.spec.epoch, self.spec.index)

    @property
    def needed_bytes(self) -> int:
        """All that the stage takes."""
        return self.weight_bytes + self.kv_bytes + self.workspace_bytes


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load has come. `done` of `total` in the phase's own unit; total 0: not known.

    `rate`: units a second, of the last moments. `sources`: how much came from where (cache, peer, head, hub).
    """

    phase: str
    done: int = 0
    total: int = 0
    rate: float = 0.0
    sources: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class HostHealth:
    """A worker's answer to a head's Health."""

    holds_lease: bool
    lease_s: float
    draining: bool
    memory_free: int
    stages: tuple[tuple[StageKey, StageHealth], ...]
