"""Finds what stops a cluster, and says what it means and what to do.

`look*` asks the system and the network, `*_checks` judges what was found without touching either.
"""
