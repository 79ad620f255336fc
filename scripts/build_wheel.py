"""Builds a wheel of this clone into dist/: its data path compiled by mypyc, or pure Python where nothing compiles.

    python scripts/build_wheel.py [--compiled]

`--compiled` fails instead of falling back. Knows no module's name: pyproject.toml lists what is compiled.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

SWITCH = "HATCH_BUILD_HOOK_ENABLE_MYPYC"


def built(*, compiled: bool) -> subprocess.CompletedProcess[str]:
    """One wheel, by way of a source distribution: so nothing is compiled into src/, where it would hide the source."""
    return subprocess.run(
        [sys.executable, "-m", "build", "--outdir", "dist", "."],
        env={**os.environ, SWITCH: str(compiled).lower()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def main() -> int:
    """Say at the end what was built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", action="store_true", help="fail where it cannot be compiled")
    required = parser.parse_args().compiled
    print("building the wheel, its data path compiled: about a minute", flush=True)
    run = built(compiled=True)
    if run.returncode and not required:
        print(
            _end_of(run.stdout) + "\nnot compiled (a C compiler and Python's headers are needed): pure Python",
            flush=True,
        )
        run = built(compiled=False)
    print(_end_of(run.stdout, 20 if run.returncode else 1))
    return run.returncode


def _end_of(text: str, lines: int = 8) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


if __name__ == "__main__":
    sys.exit(main())
