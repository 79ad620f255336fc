"""From a plan to what each worker is told: what to build, and who may open its links. Asks nobody."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.cluster.worker_client import Loaded, WorkerClient
from hyperlane.core import Epoch, Plan, Precision, StageSpec
from hyperlane.errors import ClusterError
from hyperlane.stage.orders import LinkPeers


def specs_of(plan: Plan, epoch: Epoch, step_tokens: int) -> list[StageSpec]:
    """What each worker of a plan is to build."""
    return [
        StageSpec(
            model=plan.model,
            epoch=epoch,
            index=stage.index,
            stages=len(plan.stages),
            layers=stage.layers,
            slots=plan.slots,
            context=plan.context,
            threads=stage.worker.threads,
            max_step_tokens=step_tokens,
            precision_in=plan.precisions[stage.index],
            precision_out=plan.precisions[stage.index + 1],
        )
        for stage in plan.stages
    ]


def check_elements(plan: Plan, loaded: Sequence[Loaded]) -> None:
    """Raw links carry an engine's own type of values: both ends must have the same.

    Raises:
        ClusterError: two neighbours on a raw link have not.

    """
    for precision, (source, target) in zip(plan.precisions[1:], pairwise(loaded), strict=False):
        if precision is Precision.RAW and source.element is not target.element:
            raise ClusterError(
                f"a raw link needs one element type, but its ends' engines use {source.element} and {target.element}: "
                "choose --wire int8, or leave the workers of one type out"
            )


def link_peers(clients: Sequence[WorkerClient], trust: HeadTrust | None) -> list[LinkPeers | None]:
    """Who may open each stage's links, in the order of the stages; None for those that speak plain text.

    Raises:
        ClusterError: some speak plain text, and are dialled by others that do not.

    """
    plain = [client for client in clients if client.node is None]
    if trust is None or len(plain) == len(clients):
        return [None] * len(clients)
    if plain:
        raise ClusterError(
            f"{plain[0].name} at {plain[0].address} speaks plain text and cannot be linked with workers that encrypt: "
            "leave it out, or join it too, with `hyperlane worker --join TOKEN`"
        )
    nodes = [client.node for client in clients]
    return [LinkPeers(trust.node, before) for before in [None, *nodes[:-1]]]
