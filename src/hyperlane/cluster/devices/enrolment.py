"""Every device of a host a node of its cluster: joined one after another with one token, or known from before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hyperlane.cluster.devices.spots import Spot
from hyperlane.cluster.trust import opening
from hyperlane.cluster.trust.worker_trust import WorkerTrust
from hyperlane.config import WorkerConfig
from hyperlane.errors import JoinRefused, NotTrusted

TrustOf = Callable[[WorkerConfig], WorkerTrust | None]


def enrol(config: WorkerConfig, spots: Sequence[Spot], trust_of: TrustOf = opening.worker_trust_of) -> bool:
    """See that all of them are members, with `config.join` if it is given: each takes one of the token's uses, once.

    Whether they are; False when none is, and none was to be.

    Raises:
        JoinRefused: the token opens nothing (any more); the message says which devices have joined.
        NotTrusted: some have joined and others have not, or a file is damaged.
        DuplicateIdentity, WorkerUnreachable: as `opening.worker_trust_of`.

    """
    members: list[str] = []
    for number, spot in enumerate(spots):
        own = replace(config, name=spot.name, paths=replace(config.paths, state=spot.state))
        try:
            if trust_of(own) is not None:
                members.append(spot.label)
        except JoinRefused as error:
            raise JoinRefused(_refused(spots, number, error)) from error
    outside = [spot.label for spot in spots if spot.label not in members]
    if members and outside:
        raise NotTrusted(
            f"{', '.join(members)} belong to a cluster, {', '.join(outside)} to none: start once with --join TOKEN; "
            "each device is a node, and takes one use of the token"
        )
    return bool(members)


def _refused(spots: Sequence[Spot], number: int, error: JoinRefused) -> str:
    """What keeps a device out, and what to do for it and those after it."""
    before, left = spots[:number], len(spots) - number
    done = f"; {', '.join(spot.label for spot in before)} joined and need no token again" if before else ""
    return (
        f"{spots[number].label}: {error}{done}. Each device is a node and takes one use of a token: "
        f"`hyperlane token create --uses {left}` on the head makes one that is enough"
    )
