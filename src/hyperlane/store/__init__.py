"""Weights on disk in the form that an engine maps as it is. Knows bytes and names; no graph and no engine."""
