"""Hyperlane: one language model over the machines of a LAN, behind one OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperlane.cluster.planner.partitioner import KnapsackPartitioner
    from hyperlane.sdk import AutoDistributedModel, DiscoveryManager

__version__ = "0.1.0"
__all__ = ["AutoDistributedModel", "DiscoveryManager", "KnapsackPartitioner", "__version__"]


def __getattr__(name: str) -> object:
    """The Python API on its first use: a worker, which never asks for it, starts without it."""
    if name in ("AutoDistributedModel", "DiscoveryManager"):
        from hyperlane import sdk

        return getattr(sdk, name)
    if name == "KnapsackPartitioner":
        from hyperlane.cluster.planner.partitioner import KnapsackPartitioner

        return KnapsackPartitioner
    raise AttributeError(f"module 'hyperlane' has no attribute '{name}'")
