"""The committed gRPC code is what the proto file says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
VERSIONS = re.compile(r"(Protobuf Python Version: |GRPC_GENERATED_VERSION = )[^\n]*|^ {4}\d+,$", re.MULTILINE)


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed")
def test_the_generated_code_is_that_of_the_proto_file(tmp_path):
    spec = importlib.util.spec_from_file_location("generate_proto", ROOT / "scripts/generate_proto.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.generate(tmp_path)
    committed = ROOT / "src/hyperlane/cluster/pb"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in committed.glob("*.py")}
    for path in tmp_path.iterdir():
        # Another release of the compiler writes its own version, which says nothing about the proto file.
        fresh, kept = (VERSIONS.sub("", file.read_text(encoding="utf-8")) for file in (path, committed / path.name))
        assert fresh == kept, f"{path.name} has drifted: run `make proto`"
