"""A placement that the user asked for: `NODE=a:b` for each stage, layers a … b − 1 as Python counts. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hyperlane.cluster.planner.candidate import Candidate, Kind, candidate_of, shortages_of
from hyperlane.cluster.planner.layout import Layout, layout_of
from hyperlane.cluster.planner.problem import Problem
from hyperlane.core import WorkerFacts
from hyperlane.errors import ConfigError, DoesNotFit
from hyperlane.summary import human_bytes

_ASKED = re.compile(r"(?P<node>.+)=(?P<first>\d+):(?P<last>\d+)")


def asked_layout(asked: Sequence[str], workers: Sequence[WorkerFacts], layers: int) -> Layout:
    """The layout of `NODE=a:b` texts in any order; NODE is a worker's name, its address, or the beginning of one name.

    Raises:
        ConfigError: a text is none such, names no worker or several, or a worker again; or the ranges leave a layer out
            or have it twice.

    """
    shares = sorted((_read(text, workers) for text in asked), key=lambda share: share[1:])
    numbers = [number for number, _, _ in shares]
    again = next((number for number in numbers if numbers.count(number) > 1), None)
    if again is not None:
        raise ConfigError(f"--layers gives {workers[again].name} two ranges; a worker has one")
    end = 0
    for number, first, last in shares:
        if first > end:
            raise ConfigError(f"--layers leaves out layers {end}:{first}")
        if first < end:
            raise ConfigError(f"--layers gives layers {first}:{min(end, last)} twice, to {workers[number].name} too")
        end = last
    if end != layers:
        wrong = f"leaves out layers {end}:{layers}" if end < layers else f"goes to {end}"
        raise ConfigError(f"--layers {wrong}; the model has {layers} layers, 0:{layers} in all")
    return layout_of(shares)


def asked_candidate(problem: Problem, layout: Layout) -> Candidate:
    """The candidate of a layout that was asked for.

    Raises:
        DoesNotFit: the message says which bytes are missing on which worker, or between which no path was measured.

    """
    shortages = shortages_of(problem, layout)
    if shortages:
        lines = [
            f"  {s.worker}: {s.what} take {human_bytes(s.needed_bytes)}, {human_bytes(s.free_bytes)} are free, "
            f"{human_bytes(s.missing_bytes)} are missing"
            for s in shortages
        ]
        raise DoesNotFit("\n".join([f"the layers asked for do not fit {problem.workload.model.name}'s nodes:", *lines]))
    if not problem.is_linked(layout):
        raise DoesNotFit("the layers asked for need links between nodes that have no measured path")
    return candidate_of(problem, Kind.ASKED, layout)


def _read(text: str, workers: Sequence[WorkerFacts]) -> tuple[int, int, int]:
    match = _ASKED.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"'{text}' is not NODE=a:b; write for instance --layers {workers[0].name}=0:16")
    first, last = int(match["first"]), int(match["last"])
    if first >= last:
        raise ConfigError(f"'{text}' has no layer: {first}:{last} is layers {first} up to but without {last}")
    return _number(match["node"], workers), first, last


def _number(node: str, workers: Sequence[WorkerFacts]) -> int:
    exact = [number for number, worker in enumerate(workers) if node in (worker.name, str(worker.control))]
    begun = [number for number, worker in enumerate(workers) if worker.name.startswith(node)]
    found = exact or begun
    known = ", ".join(worker.name for worker in workers)
    if not found:
        raise ConfigError(f"--layers names '{node}', which is no worker; there are {known}")
    if len(found) > 1:
        raise ConfigError(f"--layers names '{node}', which may be several of {known}; write the whole name")
    return found[0]
