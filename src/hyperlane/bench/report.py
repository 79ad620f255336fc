"""Figures of `hyperlane bench` as text for people. Pure; knows no terminal."""

from __future__ import annotations

from collections.abc import Sequence

from hyperlane.bench.suite import Figures
from hyperlane.summary import columns


def figures_text(figures: Figures) -> str:
    """Two tables: prompts by length, decoding by the number of streams."""
    prompts = [(f"{one.tokens}", f"{1e3 * one.ttft_s:.0f} ms", f"{one.rate:.0f} tokens/s") for one in figures.prompts]
    decodes = [
        (f"{one.streams}", f"{one.rate:.1f} tokens/s", f"{one.token_ms:.1f} ms", f"{1e3 * one.ttft_s:.0f} ms")
        for one in figures.decodes
    ]
    tables = []
    if prompts:
        tables.append(columns([("prompt tokens", "time to first token", "prefill"), *prompts]))
    if decodes:
        tables.append(columns([("streams", "decode, all together", "between two tokens", "first token"), *decodes]))
    return "\n\n".join(tables)


def memory_line(private_mib: Sequence[float]) -> str:
    """Private memory of this process and of each local worker."""
    return "private memory: " + " + ".join(f"{mib:.0f}" for mib in private_mib) + " MiB (head, local workers)"
