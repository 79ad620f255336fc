"""`benchmarks/multi_gpu.py` tried out on processors, where nobody has several GPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "multi_gpu.py"

pytestmark = pytest.mark.slow


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARK), *words], capture_output=True, text=True, timeout=110, check=False
    )


def test_every_setup_of_two_devices_is_timed(tmp_path):
    small = ("--prompt", "64", "--streams", "1", "2", "--new", "513", "--repetitions", "1")
    ran = run("--shape", "tiny", "--devices", "cpu,cpu", *small, "--json", str(tmp_path / "rows.json"))
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["tiny"]
    assert [(row["setup"]["pipelines"], row["setup"]["stages"]) for row in rows] == [(1, 1), (1, 2), (2, 1)]
    for row in rows:
        assert min(row["rates"]["1"], row["prompt_rate"], row["efficiency"], row["hop_us"]) > 0
    assert rows[0]["efficiency"] == 1.0
    assert min(rows[1]["predicted_one"], rows[1]["predicted_many"]) > 0
    assert [line.split("|")[1].strip() for line in ran.stdout.splitlines() if line.startswith("| ")] == [
        "setup",
        "1 stage",
        "2 stages",
        "2 replicas of 1 stage",
    ]


def test_fewer_than_two_devices_are_refused_with_what_to_do():
    ran = run("--devices", "cpu")
    assert ran.returncode == 2
    assert "needs two GPUs at least; here: cpu" in ran.stderr
