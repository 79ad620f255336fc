"""One cluster's head, as `predicted.py` starts it on a machine of the LAN: plans, then runs every placement worth it.

    python benchmarks/predicted_head.py MODEL [--new-tokens N] [--repetitions N]

Prints a join token, reads the workers' addresses as one line, and prints a JSON line for each placement that it ran.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hyperlane import config
from hyperlane.bench.workload import Sample, Workload, run_workload
from hyperlane.cluster.planner.candidate import Candidate
from hyperlane.cluster.planner.facts import Objective
from hyperlane.cluster.planner.survey import Survey
from hyperlane.cluster.trust.opening import OpenDoor
from hyperlane.config import JoinConfig, ServeConfig
from hyperlane.core import Address
from hyperlane.node import make_plan, start_serving
from hyperlane.plain import plain

SLOTS = 4
CONTEXT = 1024
LAYOUTS = 4
"""At most so many placements of a cluster are run, the best of each objective among them."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Seconds per token of one stream, tokens per second of many, seconds to the first token."""

    token_s: float
    many_rate: float
    ttft_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """One placement. `winner_of`: the objectives whose best it is by prediction."""

    layers: tuple[str, ...]
    winner_of: tuple[str, ...]
    groups: int
    predicted: Speeds
    achieved: Speeds


@dataclass(frozen=True, slots=True)
class Asked:
    """What is run: the model, its workers, tokens of an answer, how often."""

    model: str
    workers: tuple[Address, ...]
    new_tokens: int
    repetitions: int

    def config(self, **more: object) -> ServeConfig:
        """A pipeline over these workers."""
        return config.load(
            ServeConfig,
            model=self.model,
            workers=self.workers,
            use="best",
            slots=SLOTS,
            context=CONTEXT,
            wire="raw",  # the toy engine packs nothing
            **more,
        )


def runs(asked: Asked) -> Iterator[Run]:
    """Every placement that is worth it, run."""
    measure = {Objective.LATENCY: "again"}  # whatever was remembered of these devices, once
    surveys = {objective: _survey(asked, objective, measure.get(objective, "auto")) for objective in Objective}
    winners = {objective: _layers(survey.winner) for objective, survey in surveys.items() if survey.winner}
    for layers in list(dict.fromkeys(_placements(surveys.values(), tuple(winners.values()))))[:LAYOUTS]:
        won = tuple(str(objective) for objective, winner in winners.items() if winner == layers)
        yield _run(asked, layers, won)


def _survey(asked: Asked, objective: Objective, measure: str) -> Survey:
    found = make_plan(asked.config(optimize=str(objective), measure=measure)).survey
    if found is None:
        raise SystemExit("the workers could not be measured")
    return found


def _placements(
    surveys: Iterator[Survey] | Sequence[Survey], winners: Sequence[tuple[str, ...]]
) -> Iterator[tuple[str, ...]]:
    yield from winners
    candidates = [c for survey in surveys for c in survey.candidates if len(c.pipelines) == 1]
    yield from map(_layers, sorted(candidates, key=lambda candidate: candidate.token_s))


def _layers(candidate: Candidate) -> tuple[str, ...]:
    return tuple(f"{stage.worker}={stage.layers.first}:{stage.layers.last}" for stage in candidate.best.stages)


def _run(asked: Asked, layers: tuple[str, ...], won: tuple[str, ...]) -> Run:
    with start_serving(asked.config(layers=layers)) as serving:
        said, service = serving.plan.prediction, serving.service
        assert said is not None, "the workers could not be measured"
        one = Workload(said.prompt_tokens, asked.new_tokens)
        many = Workload(said.prompt_tokens, 4 * asked.new_tokens, said.streams)
        run_workload(service, Workload(16, 8))
        alone = [run_workload(service, one, seed) for seed in range(asked.repetitions)]
        together = [run_workload(service, many, seed, primed=True) for seed in range(asked.repetitions)]
        return Run(
            layers,
            won,
            said.groups,
            Speeds(said.token_s, said.many_rate, said.ttft_s),
            Speeds(
                1 / statistics.median(sample.decode_rate for sample in alone),
                statistics.median(map(_rate, together)),
                statistics.median(sample.ttft_s for sample in alone),
            ),
        )


def _rate(sample: Sample) -> float:
    if not sample.decode_rate:
        raise SystemExit("at no time did all streams decode: ask for a larger --new-tokens")
    return sample.decode_rate


def main() -> None:
    """Command line."""
    logging.basicConfig(level=logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=2)
    given = parser.parse_args()
    settings = config.load(JoinConfig)
    door = OpenDoor(settings.paths, settings)
    try:
        print(door.token(600.0, 16).encode(), flush=True)
        workers = tuple(map(Address.parse, sys.stdin.readline().split()))
        for run in runs(Asked(given.model, workers, given.new_tokens, given.repetitions)):
            print(json.dumps(plain(run)), flush=True)
    finally:
        door.close()


if __name__ == "__main__":
    main()
