"""Hyperlane: one language model over the machines of a LAN, behind one OpenAI-compatible endpoint."""

__version__ = "0.1.0"
