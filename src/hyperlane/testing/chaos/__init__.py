"""Faults of every kind, by a seed, in a cluster of real processes under load: what must hold then, and what it took."""
