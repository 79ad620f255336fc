"""What a lost worker costs: how soon it is noticed, and how long a stream stands still, by the tokens to compute again.

    python benchmarks/recovery.py [--workers 3] [--runs 3] [--model smollm2-135m] [--at 16 128 256 448] [--spare] …

Workers are processes of this machine with one thread each; a lone greedy stream of 512 tokens runs. When it has so many
tokens a worker is killed (SIGKILL), each stage's in its turn: *noticed* is the time until the head has given the
pipeline up, *gap* the longest pause between two tokens. Then workers are suspended (SIGSTOP): noticed against the
deadline that the step had. Every answer must be that of an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import psutil

from hyperlane.bench.machine import describe_machine
from hyperlane.bench.pages import write_figures
from hyperlane.config import ServeConfig, load
from hyperlane.core import Failed, GenerationRequest, SamplingParams, TextDelta
from hyperlane.node import Serving, start_serving

TOKENS = 512
HANG_AT = 64
LOOK_S = 0.0005
WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Loss:
    """One worker lost: the tokens that there were, its stage, seconds until noticed, and of the gap."""

    at: int
    stage: int
    noticed_s: float
    gap_s: float


@dataclass(frozen=True, slots=True)
class Hang:
    """One worker suspended; `deadline_s`: of the step that was given up."""

    noticed_s: float
    deadline_s: float
    gap_s: float


class Bench:
    """A model that is served, and what an undisturbed answer is."""

    def __init__(self, serving: Serving, workers: int, *, spare: bool) -> None:
        """`workers`: that a plan has; `spare`: one more stands by, and is waited for."""
        self._serving = serving
        self.workers = workers
        self._spare = spare
        self._reference, _, _ = self._stream(None, lambda: None)

    def kill(self, at: int, stage: int) -> Loss:
        """Kill the worker of a stage when the stream has so many tokens."""
        tokens, gap_s, noticed_s = self._stream(at, self._process(stage).kill)
        self._check(tokens)
        return Loss(at, stage, noticed_s, gap_s)

    def hang(self, stage: int) -> Hang:
        """Suspend it."""
        victim = self._process(stage)
        with _Heard() as heard:
            tokens, gap_s, noticed_s = self._stream(HANG_AT, victim.suspend)
        self._check(tokens)
        if victim.is_running():
            victim.kill()
        return Hang(noticed_s, heard.deadline_s, gap_s)

    def wait_for_all(self) -> None:
        """Until the worker that was started again is part of the plan."""
        until_s = time.monotonic() + WITHIN_S
        while len(self._places()) < self.workers or not self._serving.service.ready() or not self._spare_holds():
            if time.monotonic() > until_s:
                raise SystemExit(f"not all {self.workers} workers came back within {WITHIN_S:g} s")
            time.sleep(0.05)

    def _spare_holds(self) -> bool:
        """Whether the spare holds every stage."""
        spare = self._serving.service.status().spare
        return not self._spare or (spare is not None and spare.state == "ready" and len(spare.layers) == self.workers)

    def _places(self) -> set[int]:
        return {stage.worker.control.port for stage in self._serving.plan.stages}

    def _process(self, stage: int) -> psutil.Process:
        stages = self._serving.plan.stages
        port = stages[stage % len(stages)].worker.control.port
        (pid,) = {one.pid for one in psutil.net_connections("tcp") if one.laddr.port == port and one.status == "LISTEN"}
        return psutil.Process(pid)

    def _stream(self, at: int | None, strike: Callable[[], object]) -> tuple[list[int], float, float]:
        """The tokens of a greedy answer, the longest pause after `strike`, and when that was noticed; seconds."""
        service = self._serving.service
        prompt = service.encode("Once upon a time there was a lighthouse on an island in the north.")
        params = SamplingParams(temperature=0.0)
        request = GenerationRequest("gap", tuple(prompt), params, max_tokens=TOKENS, ignore_eos=True)
        tokens: list[int] = []
        gap_s, last_s, watch = 0.0, 0.0, _Watch(self._serving)
        for event in service.submit(request):
            now_s = time.perf_counter()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, TextDelta):
                gap_s = max(gap_s, now_s - last_s if last_s else 0.0)
                last_s = now_s if last_s else 0.0
                tokens += event.tokens
                if at is not None and not last_s and len(tokens) >= at:
                    watch.begin(strike)
                    last_s = watch.began_s
        return tokens, gap_s, watch.end() if at is not None else 0.0

    def _check(self, tokens: list[int]) -> None:
        if tokens != self._reference:
            raise SystemExit("another answer than the undisturbed one")


class _Watch:
    """Sees when the head gives a pipeline up."""

    def __init__(self, serving: Serving) -> None:
        self._status = serving.service.status
        self.began_s = self._noticed_s = 0.0
        self._thread: threading.Thread | None = None

    def begin(self, strike: Callable[[], object]) -> None:
        before = self._status().losses
        self.began_s = time.perf_counter()
        strike()
        self._thread = threading.Thread(target=self._look, args=(before,), daemon=True)
        self._thread.start()

    def end(self) -> float:
        assert self._thread is not None
        self._thread.join()
        return self._noticed_s - self.began_s

    def _look(self, before: int) -> None:
        while self._status().losses == before:
            time.sleep(LOOK_S)
        self._noticed_s = time.perf_counter()


class _Heard(logging.Handler):
    """Reads from the log how long a step that was given up might have taken."""

    deadline_s = 0.0

    def __enter__(self) -> _Heard:
        logging.getLogger("hyperlane.node").addHandler(self)
        return self

    def __exit__(self, *_error: object) -> None:
        logging.getLogger("hyperlane.node").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.search(r"did not come back within ([\d.]+) s", record.getMessage()):
            self.deadline_s = float(found[1])


def main() -> None:
    """Print the curve of the gap, then what was noticed when."""
    options = _options()
    settings = {"model": options.model, "local_workers": options.workers, "threads": 1, "context": 1024}
    settings |= {"measure": "never", "spare": options.spare}  # layers as even as they go, each time
    kind = ", one more as a spare" if options.spare else ""
    title = f"{options.model}, {options.workers} workers of 1 thread on this machine{kind}; {describe_machine()}"
    print(title, flush=True)
    with start_serving(load(ServeConfig, **settings)) as serving:
        bench = Bench(serving, options.workers, spare=options.spare)
        bench.wait_for_all()
        losses, lines = _losses(bench, options)
        hangs = []
        for run in range(options.hangs):
            hangs.append(bench.hang(run % bench.workers))
            bench.wait_for_all()
    noticed = _noticed(losses, hangs)
    print("\n".join(noticed))
    if options.docs:
        write_figures(
            options.docs, "recovery spare" if options.spare else "recovery", "\n".join((title, *lines, *noticed))
        )
    if options.json:
        data = {"losses": [asdict(one) for one in losses], "hangs": [asdict(one) for one in hangs]}
        options.json.write_text(json.dumps(data, indent=1), encoding="utf-8")


def _losses(bench: Bench, options: argparse.Namespace) -> tuple[list[Loss], list[str]]:
    lines = [f"{'killed after':>12}  {'gap (median)':>12}  {'least':>8}  {'most':>8}   by the stage that was lost"]
    losses: list[Loss] = []
    for at in options.at:
        found = []
        for run in range(options.runs):
            found.append(bench.kill(at, run % bench.workers))
            bench.wait_for_all()
        lines.append(_line(str(at), found))
        print("\n".join(lines[-2:] if at == options.at[0] else lines[-1:]), flush=True)
        losses += found
    if losses:
        lines.append(_line("all", losses))
        print(lines[-1], flush=True)
    return losses, lines


def _line(name: str, found: list[Loss]) -> str:
    gaps = [one.gap_s for one in found]
    stages = sorted({one.stage for one in found})
    by_stage = "  ".join(f"{median(one.gap_s for one in found if one.stage == stage):.2f}" for stage in stages)
    return f"{name:>12}  {median(gaps):>10.2f} s  {min(gaps):>6.2f} s  {max(gaps):>6.2f} s   {by_stage}"


def _noticed(losses: list[Loss], hangs: list[Hang]) -> list[str]:
    lines = []
    if losses:
        noticed = [1e3 * one.noticed_s for one in losses]
        lines.append(
            f"killed workers were noticed after {median(noticed):.1f} ms (median), at most {max(noticed):.1f} ms"
        )
    lines += [
        f"a hung worker was noticed after {one.noticed_s:.3f} s, {one.noticed_s / one.deadline_s:.2f} times the step's "
        f"deadline of {one.deadline_s:.2f} s; gap {one.gap_s:.2f} s"
        for one in hangs
    ]
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="kills at each number of tokens")
    parser.add_argument("--hangs", type=int, default=3)
    parser.add_argument("--at", type=int, nargs="*", default=[16, 128, 256, 448])
    parser.add_argument("--spare", action="store_true", help="one more worker holds the stages of the others")
    parser.add_argument("--docs", type=Path, help="a page to write the figures into, between its marks")
    parser.add_argument("--json", type=Path, help="write all figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
