"""Which layers go where, by measured cost: facts in, the best plan and what it will do out. Pure.

`partitioner` is the way in. No clock, no socket, no engine: `cluster.profile` measures, this package decides.
"""
