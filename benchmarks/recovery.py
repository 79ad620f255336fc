"""How long a stream stands still when a worker is killed: the gap by the tokens that have to be computed again.

python benchmarks/recovery.py [--workers 3] [--runs 5] [--model smollm2-135m] [--at 16 128 256 448]

A worker of this machine is killed (SIGKILL) when a lone greedy stream has so many tokens; the longest pause between two
of its tokens is the gap. The answer must be that of an undisturbed run.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import psutil

from hyperlane.bench.machine import describe_machine
from hyperlane.config import ServeConfig, load
from hyperlane.core import Failed, GenerationRequest, SamplingParams, TextDelta
from hyperlane.node import Serving, start_serving

TOKENS = 512


def main() -> None:
    """Print a line for each number of tokens."""
    options = _options()
    settings = {"model": options.model, "local_workers": options.workers, "threads": 1, "context": 1024}
    print(f"{options.model}, {options.workers} workers of 1 thread on this machine; {describe_machine()}")
    with start_serving(load(ServeConfig, **settings)) as serving:
        reference, _ = _stream(serving, None, 0)
        print(f"{'killed after':>12}  {'gap (median)':>12}  {'least':>8}  {'most':>8}")
        for at in options.at:
            gaps = []
            for run in range(options.runs):
                tokens, gap_s = _stream(serving, at, run % options.workers)
                if tokens != reference:
                    raise SystemExit(f"another answer after a kill at token {at}")
                gaps.append(gap_s)
                _wait_for_all(serving, options.workers)
            print(f"{at:>12}  {median(gaps):>10.2f} s  {min(gaps):>6.2f} s  {max(gaps):>6.2f} s", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--at", type=int, nargs="+", default=[16, 128, 256, 448])
    return parser.parse_args()


def _stream(serving: Serving, kill_at: int | None, victim: int) -> tuple[list[int], float]:
    """The tokens of a greedy answer and the longest pause between two of them, seconds."""
    prompt = serving.service.encode("Once upon a time there was a lighthouse on an island in the north.")
    params = SamplingParams(temperature=0.0)
    request = GenerationRequest("gap", tuple(prompt), params, max_tokens=TOKENS, ignore_eos=True)
    tokens: list[int] = []
    gap_s, last_s, killed = 0.0, time.perf_counter(), kill_at is None
    for event in serving.service.submit(request):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, TextDelta):
            now_s = time.perf_counter()
            gap_s, last_s = max(gap_s, now_s - last_s if killed and kill_at else 0.0), now_s
            tokens += event.tokens
            if not killed and kill_at is not None and len(tokens) >= kill_at:
                stages = serving.plan.stages
                _kill(stages[victim % len(stages)].worker.control.port)
                killed, last_s = True, time.perf_counter()
    return tokens, gap_s


def _kill(port: int) -> None:
    (pid,) = {one.pid for one in psutil.net_connections("tcp") if one.laddr.port == port and one.status == "LISTEN"}
    psutil.Process(pid).kill()


def _wait_for_all(serving: Serving, workers: int) -> None:
    """Until the worker that was started again is part of the plan."""
    while len({stage.worker.control for stage in serving.plan.stages}) < workers or not serving.service.ready():
        time.sleep(0.05)


if __name__ == "__main__":
    main()
