"""Rules out TLS 1.2 on the gRPC servers of a process; to be asked for before anything imports gRPC.

gRPC's Python API has no setting for the version, and its variables are read when it is imported. Imports nothing.
"""

from __future__ import annotations

import os
import sys

VARIABLES = {"GRPC_SSL_CIPHER_SUITES": "ECDHE-RSA-AES256-GCM-SHA384"}
"""The only suite left to TLS 1.2 needs an RSA key, and ours are of P-256: so TLS 1.3, which the variable does not
concern, is the only version that a server of ours can speak.
"""

_state = {"ruled_out": False}


def rule_out() -> None:
    """For processes of our own: a library's user may have other uses for gRPC."""
    if "grpc" not in sys.modules:
        os.environ.update(VARIABLES)
        _state["ruled_out"] = True


def is_ruled_out() -> bool:
    """Whether `rule_out` came in time."""
    return _state["ruled_out"]
