"""Whatever Hyperlane writes, its writer may be killed at any moment: what is there is the old or the new one, whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("killed_writer.py")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and RLIMIT_FSIZE")


def run(*arguments: str) -> str:
    command = [sys.executable, str(PROGRAM), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_a_writer_that_is_killed_at_any_step_leaves_the_old_or_the_new_content():
    assert run().count("killed before") == 9


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_writer_that_is_killed_at_any_length_leaves_the_old_or_the_new_content():
    assert run("--every-length").count("killed before") == 9
