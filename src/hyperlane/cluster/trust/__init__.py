"""Who belongs to a cluster: its authority, tokens to join it, certificates of its nodes, and those taken back.

`docs/security.md` has the threat model and says what each file is.
"""
