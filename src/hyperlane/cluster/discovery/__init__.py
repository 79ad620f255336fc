"""How machines find each other: mDNS on every suitable interface, then addresses by hand, then a join token's.

Finds addresses and what is claimed there; never decides who is trusted.
"""
