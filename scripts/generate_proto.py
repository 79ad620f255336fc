"""Writes src/hyperlane/cluster/pb/ from proto/hyperlane/v1/control.proto. Needs grpcio-tools (the `dev` extra).

Usage: python scripts/generate_proto.py [TARGET_FOLDER]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = Path("hyperlane/v1/control.proto")
PACKAGE = ROOT / "src/hyperlane/cluster/pb"
INIT = '"""Generated from proto/hyperlane/v1/control.proto by scripts/generate_proto.py. Do not edit."""\n'


def generate(target: Path) -> None:
    """Write the package's files into `target`."""
    with tempfile.TemporaryDirectory() as scratch:
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}"]
        outputs = [f"--python_out={scratch}", f"--grpc_python_out={scratch}"]
        subprocess.run([*protoc, *outputs, str(ROOT / "proto" / PROTO)], check=True)
        target.mkdir(parents=True, exist_ok=True)
        (target / "__init__.py").write_text(INIT, encoding="utf-8", newline="\n")
        for source in sorted((Path(scratch) / PROTO.parent).iterdir()):
            text = source.read_text(encoding="utf-8")
            # The compiler derives Python packages from the proto's path; ours lives inside `hyperlane.cluster`.
            text = text.replace("from hyperlane.v1 import", "from hyperlane.cluster.pb import")
            (target / source.name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE)
