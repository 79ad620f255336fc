"""Weights from the store are mapped and not copied: what a stage holds of its own is a small part of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "ready_memory.py"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")]


@pytest.mark.parametrize(("name", "weights_mib", "share"), [("smollm2-135m", 121, 0.3), ("llama-3-8b", 117 * 2, 0.1)])
def test_a_stage_that_has_computed_holds_no_copy_of_its_weights(name, weights_mib, share, tmp_path, smollm2_path):
    program = (
        f"import sys; sys.path.insert(0, {str(BENCHMARK.parent)!r})\n"
        "import json; from pathlib import Path; import ready_memory as told\n"
        "from hyperlane.stage.loading import load_engine; from hyperlane.store.ready_store import ReadyStore\n"
        f"spec, source, _ = told.stage({name!r}, 2, 1); store = Path({str(tmp_path)!r})\n"
    )
    convert = program + "load_engine(spec, source, ReadyStore(store)).close()"
    subprocess.run([sys.executable, "-c", convert], check=True)
    ran = subprocess.run(
        [sys.executable, "-c", program + "print(json.dumps(told.life(spec, store)))"],
        check=True,
        capture_output=True,
        text=True,
    )
    parts = json.loads(ran.stdout.splitlines()[-1])
    print(parts)
    assert parts["load"] + parts["a token"] < share * weights_mib
