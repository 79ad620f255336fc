"""A worker process whose engine is the toy model, for tests of everything around engines.

HYPERLANE_TEST_LOAD: `hang` reports that it hangs and goes on reporting until it is told to stop; `crash` ends the
process with a last word. HYPERLANE_TEST_LEASE_S: a lease of another length. HYPERLANE_TEST_NO_FILES: pretends that
this machine has no copy of any model. Weights are read in any case, so that they must arrive.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

from hyperlane import config, node, working
from hyperlane.cluster import machine
from hyperlane.cluster.weights import stage_tensors
from hyperlane.cluster.worker import DeviceFacts
from hyperlane.core import ElementType
from hyperlane.models.weights import ExpectingSource
from hyperlane.stage.orders import LoadProgress
from hyperlane.testing.fake_engine import FakeCost, FakeEngine


def build(spec, source, progress):
    mode = os.environ.get("HYPERLANE_TEST_LOAD")
    if mode == "crash":
        sys.stderr.write("the toy crashed on purpose\n")
        sys.stderr.flush()
        os._exit(77)
    while mode == "hang":
        progress(LoadProgress("hanging"))
        time.sleep(0.02)
    digest = hashlib.sha256()
    if isinstance(source, ExpectingSource):
        source.expect(stage_tensors(spec))
    for name in stage_tensors(spec):
        digest.update(source.read(name).data)
        progress(LoadProgress("reading"))
    if place := os.environ.get("HYPERLANE_TEST_DIGESTS"):
        (Path(place) / f"stage-{spec.index}").write_text(digest.hexdigest(), encoding="ascii")
    return FakeEngine(spec, cost=FakeCost(step_s=float(os.environ.get("HYPERLANE_TEST_STEP_S", "0"))))


def main() -> None:
    arguments = [word for word in sys.argv[1:] if word != "--announce"]
    flags = {name.removeprefix("--"): value for name, value in zip(arguments[::2], arguments[1::2], strict=True)}
    device = DeviceFacts(
        device="toy",
        provider="toy",
        element=ElementType.F32,
        runtime_version="0",
        memory_pool=machine.machine_id(),
        memory_total=machine.total_memory(),
        free_memory=machine.free_memory,
    )
    flags.pop("device", None)
    if "HYPERLANE_TEST_NO_FILES" in os.environ:
        working.holds_model = lambda fingerprint, path, digests: False
    settings = config.load(config.WorkerConfig, announce=True, **flags)
    node.run_worker(settings, node.EngineRoom(device, build), float(os.environ.get("HYPERLANE_TEST_LEASE_S", "15")))


if __name__ == "__main__":
    main()
