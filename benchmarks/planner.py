"""Times the planner, and holds its predictions and what it does beyond the exact size against what is exact.

    python benchmarks/planner.py [--cases 40] [--repetitions 5]

Clusters are made up at random (seeded): speeds up to ten times apart, links from 0.1 to 2 ms at 1 Gbit/s, memory for
15 to 60 % of the model on each worker. No model and no worker is needed. Prints seconds to plan; how much
worse plans are that were not searched exactly; how far predictions are from a simulated ring under the real scheduler.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

from hyperlane.bench.machine import describe_machine
from hyperlane.cluster.planner import search
from hyperlane.cluster.planner.facts import HeadCost, Objective
from hyperlane.cluster.planner.layout import Layout
from hyperlane.cluster.planner.optimum import Optimum, optimum
from hyperlane.cluster.planner.partitioner import KnapsackPartitioner
from hyperlane.cluster.planner.predict import Predictor
from hyperlane.cluster.planner.problem import Problem
from hyperlane.cluster.planner.search import EXACT_WORKERS, best_layout
from hyperlane.cluster.planner.subsets import AllLayouts
from hyperlane.testing.clusters import GIB, Machine, made_up_cluster, made_up_workload
from hyperlane.testing.simulated_head import simulated_period_s, simulated_ttft_s

SIZES = ((2, 32), (4, 32), (4, 80), (6, 80), (8, 80), (10, 80), (12, 80), (16, 80), (24, 80))


def made_up(seed: int, workers: int, layers: int, pooled: int = 0) -> Problem:
    """A cluster and a workload of that size; the first `pooled` workers share the memory of one."""
    rng = random.Random(f"{seed} {workers} {layers}")
    room = layers * GIB

    def machine(number: int) -> Machine:
        return Machine(
            layer_ms=rng.uniform(0.3, 3),
            row_ms=rng.uniform(0.01, 0.3),
            free=int(rng.uniform(0.15, 0.6) * room) if number >= pooled else room * 2 // 3,
            step_ms=rng.uniform(0.05, 0.3),
            embed_ms=0.02,
            project_ms=rng.uniform(0.5, 3),
            pool="pool" if number < pooled else "",
        )

    ends = workers + 1
    distances = [[rng.uniform(0.1, 2) for _ in range(ends)] for _ in range(ends)]
    head = HeadCost(step_s=50e-6, token_s=40e-6, publish_s=30e-6)
    facts = made_up_cluster([machine(n) for n in range(workers)], rtt_ms=distances, mb_per_s=117.0, head=head)
    workload = made_up_workload(
        layers,
        hidden=4096,
        kv=GIB // 16,
        workspace=GIB // 4,
        embedding=GIB,
        output=GIB,
        streams=8,
        prompt_tokens=rng.choice([200, 512, 1000]),
    )
    return Problem(facts, workload)


def seconds(run: Callable[[], object]) -> float:
    """How long it takes, once."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def print_times(repetitions: int) -> None:
    """Median and longest of some clusters of each size."""
    print(f"\nseconds to plan, median and longest of {repetitions} clusters")
    print(f"{'workers':>7} {'layers':>6} {'searched':>9}  {'latency':>14}  {'throughput':>14}  {'whole table':>14}")
    for workers, layers in SIZES:
        cells = []
        problems = [made_up(seed, workers, layers) for seed in range(repetitions)]
        for objective in Objective:
            cells.append([seconds(lambda p=p, o=objective: best_layout(p, o)) for p in problems])
        cells.append([seconds(lambda p=p: KnapsackPartitioner().survey(p.facts, p.workload)) for p in problems])
        shown = "  ".join(f"{statistics.median(cell):6.2f} {max(cell):7.2f}" for cell in cells)
        print(f"{workers:7} {layers:6} {'exactly' if workers <= EXACT_WORKERS else 'in part':>9}  {shown}")


def print_shared(repetitions: int) -> None:
    """The same where two workers share memory: prices and branches come on top."""
    print(f"\nseconds to plan where the first two workers share memory, median and longest of {repetitions} clusters")
    print(f"{'workers':>7} {'layers':>6}  {'latency':>14}  {'throughput':>14}  {'proved':>7}")
    for workers, layers in ((4, 80), (8, 80), (10, 80)):
        problems = [made_up(seed, workers, layers, pooled=2) for seed in range(repetitions)]
        cells, proved = [], []
        for objective in Objective:
            found = []
            cells.append([seconds(lambda p=p, o=objective, f=found: f.append(best_layout(p, o))) for p in problems])
            proved += [best.proved for best in found if best is not None]
        shown = "  ".join(f"{statistics.median(cell):6.2f} {max(cell):7.2f}" for cell in cells)
        print(f"{workers:7} {layers:6}  {shown}  {sum(proved):3}/{len(proved):3}")


def print_gaps(cases: int) -> None:
    """What the search for larger clusters misses, on clusters that can be searched exactly."""
    print(
        f"\nplans of the search for more than {EXACT_WORKERS} workers, against exact ones: part by which they are worse"
    )
    print(f"{'workers':>7} {'searched':>9} {'objective':>11} {'median':>7} {'mean':>7} {'worst':>7} {'cases':>6}")
    exact_workers, together = search.EXACT_WORKERS, search.TOGETHER
    for workers, share in ((8, 5), (10, 6), (11, 9)):
        for objective in Objective:
            gaps = []
            for seed in range(cases):
                problem = made_up(seed, workers, 40)
                exact = optimum(problem, AllLayouts(range(workers)), objective, tie=0.0)
                search.EXACT_WORKERS, search.TOGETHER = 0, share
                found = best_layout(problem, objective, tie=0.0)
                search.EXACT_WORKERS, search.TOGETHER = exact_workers, together
                if exact is not None:
                    assert found is not None, f"case {seed}: nothing was found where a plan exists"
                    gaps.append(value(found, objective) / value(exact, objective) - 1)
            shown = f"{statistics.median(gaps):7.1%} {statistics.mean(gaps):7.1%} {max(gaps):7.1%} {len(gaps):6}"
            print(f"{workers:7} {f'{share} at once':>9} {objective:>11} {shown}")


def value(found: Optimum, objective: Objective) -> float:
    """What the objective makes small."""
    return found.forecast.token_s if objective is Objective.LATENCY else found.forecast.period_s


def print_errors(cases: int) -> None:
    """Predictions of chosen plans against a simulated ring under the head's own scheduler."""
    errors: dict[str, list[float]] = {"first token": [], "one stream": [], "8 streams": []}
    for seed in range(cases):
        for objective in Objective:
            problem = made_up(seed, 4, 32)
            found = best_layout(problem, objective)
            if found is not None:
                for name, error in prediction_errors(problem.predictor, found.layout).items():
                    errors[name].append(error)
    print("\npredictions against a simulated ring under the head's scheduler: difference, relative")
    print(f"{'':12} {'median':>8} {'worst':>8} {'plans':>6}")
    for name, found_errors in errors.items():
        print(f"{name:12} {statistics.median(found_errors):8.2%} {max(found_errors):8.2%} {len(found_errors):6}")


def prediction_errors(predictor: Predictor, layout: Layout) -> dict[str, float]:
    """Relative differences of one layout."""
    streams = predictor.workload.streams
    groups, period_s = predictor.best_groups(layout, streams)
    pairs = {
        "first token": (predictor.ttft_s(layout) - predictor.facts.head.publish_s, simulated_ttft_s(predictor, layout)),
        "one stream": (predictor.token_s(layout), simulated_period_s(predictor, layout, 1, 1)),
        f"{streams} streams": (period_s, simulated_period_s(predictor, layout, groups, streams)),
    }
    return {name: abs(predicted / simulated - 1) for name, (predicted, simulated) in pairs.items()}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="time of planning, and how near predictions and large plans are")
    parser.add_argument("--cases", type=int, default=40, help="made-up clusters for each line of the last two tables")
    parser.add_argument("--repetitions", type=int, default=5, help="made-up clusters for each line of the first two")
    arguments = parser.parse_args()
    print(describe_machine())
    print_times(arguments.repetitions)
    print_shared(arguments.repetitions)
    print_gaps(arguments.cases)
    print_errors(arguments.cases)


if __name__ == "__main__":
    main()
