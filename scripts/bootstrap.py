"""Creates the virtual environment that the Makefile works in, or says what the machine lacks for it.

Knows nothing of the project's dependencies. Written for any Python 3, so that an old one gets a clear message.
"""

import os
import shutil
import subprocess
import sys

OLDEST = (3, 11)


def complaint() -> str:
    """What keeps this Python from making an environment, and what to do about it; empty when nothing does."""
    if sys.version_info < OLDEST:
        return (
            "{} is Python {}.{}, and Hyperlane needs 3.11 or newer. Install one (Debian 12 and Ubuntu 24.04 have it: "
            "apt-get install python3 python3-venv) and name it: make PYTHON=python3.11".format(
                sys.executable, *sys.version_info[:2]
            )
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return (
            "{} has no venv module. On Debian and Ubuntu install it with: "
            "apt-get install python3-venv   (or python{}.{}-venv)".format(sys.executable, *sys.version_info[:2])
        )
    return ""


def main() -> int:
    """Make the environment in the folder that the first argument names, unless a sound one is there."""
    folder = sys.argv[1]
    python = os.path.join(folder, "Scripts" if os.name == "nt" else "bin", "python")
    trial = [python, "-c", "import sys, pip; sys.exit(sys.version_info < (3, 11))"]
    if shutil.which(python) and subprocess.call(trial, stderr=subprocess.DEVNULL) == 0:
        return 0
    problem = complaint()
    if problem:
        sys.stderr.write("bootstrap: " + problem + "\n")
        return 1
    sys.stderr.write("bootstrap: making {} with {} {}.{}.{}\n".format(folder, sys.executable, *sys.version_info[:3]))
    return subprocess.call([sys.executable, "-m", "venv", "--clear", folder])


if __name__ == "__main__":
    sys.exit(main())
