"""The table of candidates: single nodes, the best subset of each size, all nodes, replicas; and the winner. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hyperlane.cluster.planner.candidate import Candidate, Kind, Shortage, candidate_of, shortages_of
from hyperlane.cluster.planner.facts import Objective
from hyperlane.cluster.planner.layout import layout_of
from hyperlane.cluster.planner.optimum import TIE, Optimum
from hyperlane.cluster.planner.problem import Problem
from hyperlane.cluster.planner.refusal import Refusal, refusal_of
from hyperlane.cluster.planner.replicas import best_replicas
from hyperlane.cluster.planner.search import best_layout
from hyperlane.cluster.planner.why import instead, reason

EVERY_SIZE = 8
"""Up to so many workers the best subset of every size is searched; beyond, of the sizes next to the best."""


@dataclass(frozen=True, slots=True)
class Free:
    """What a node has for stages now, before any plan."""

    worker: str
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Survey:
    """All that is worth showing. `winner`: the best single pipeline, None if nothing fits (then there is a `refusal`).

    `why`: one sentence with the numbers. `replicas`: what several pipelines would do, if at least two fit. `nodes`:
    all of them.
    """

    objective: Objective
    candidates: tuple[Candidate, ...]
    winner: Candidate | None
    why: str
    replicas: Candidate | None = None
    refusal: Refusal | None = None
    nodes: tuple[Free, ...] = ()

    @property
    def unused(self) -> tuple[Free, ...]:
        """The nodes without a part in the winner."""
        used = self.winner.workers if self.winner is not None else ()
        return tuple(node for node in self.nodes if node.worker not in used)


def survey(problem: Problem, objective: Objective, *, tie: float = TIE) -> Survey:
    """Every candidate, with predictions, the winner and the reason."""
    facts = problem.facts
    best = best_layout(problem, objective, tie=tie) if facts.workers else None
    nodes = [_node(problem, worker) for worker in range(len(facts.workers))]
    if best is None:
        return Survey(objective, tuple(nodes), None, "nothing fits", refusal=refusal_of(problem), nodes=_free(problem))
    replicas = best_replicas(problem)
    sizes = _sizes(len(nodes), len(best.layout))
    subsets = [_subset(problem, objective, best, size, tie) for size in sizes]
    shown = [*nodes, *(subset for subset in subsets if subset is not None), *([replicas] if replicas else [])]
    workers = tuple(facts.names[share.worker] for share in best.layout)
    winner = next(candidate for candidate in shown if candidate.workers == workers and candidate.fits)
    return Survey(objective, tuple(shown), winner, reason(winner, shown, objective), replicas, nodes=_free(problem))


def with_winner(found: Survey, asked: Candidate, because: str) -> Survey:
    """The same with another winner, for the given reason; a candidate that is not in the table yet ends it."""
    known = next((candidate for candidate in found.candidates if candidate == asked), None)
    shown = found.candidates if known else (*found.candidates, asked)
    best = found.winner
    is_best = best is None or best.pipelines == asked.pipelines
    why = found.why if best is None or is_best else instead(asked, best, found.objective)
    return replace(found, candidates=shown, winner=known or asked, why=f"{because}; {why}", refusal=None)


def _free(problem: Problem) -> tuple[Free, ...]:
    return tuple(Free(*pair) for pair in zip(problem.facts.names, map(int, problem.memory.caps), strict=True))


def _node(problem: Problem, worker: int) -> Candidate:
    layout = layout_of([(worker, 0, problem.layers)])
    shortages = shortages_of(problem, layout)
    if shortages:
        return Candidate(Kind.NODE, (problem.facts.names[worker],), shortages=shortages)
    if not problem.is_linked(layout):
        return Candidate(Kind.NODE, (problem.facts.names[worker],), reason="no path to it and back was measured")
    return candidate_of(problem, Kind.NODE, layout)


def _sizes(nodes: int, best: int) -> list[int]:
    """Numbers of nodes, from 2 on, whose best subset is shown."""
    sizes = range(2, nodes + 1)
    return [size for size in sizes if nodes <= EVERY_SIZE or abs(size - best) <= 1 or size == nodes]


def _subset(problem: Problem, objective: Objective, best: Optimum, size: int, tie: float) -> Candidate | None:
    """The best pipeline over so many nodes; None if there is none, but all nodes are shown in any case."""
    nodes = len(problem.facts.workers)
    kind = Kind.ALL if size == nodes else Kind.SUBSET
    found = best if size == len(best.layout) else best_layout(problem, objective, size=size, tie=tie)
    if found is not None:
        return candidate_of(problem, kind, found.layout, proved=found.proved)
    if size < nodes:
        return None
    shortages = _too_small(problem)
    why = "" if shortages else "no order of all nodes was found that fits"
    if nodes > problem.layers:
        shortages, why = (), f"the model has {problem.layers} layers for {nodes} nodes"
    return Candidate(kind, problem.facts.names, shortages=shortages, reason=why)


def _too_small(problem: Problem) -> tuple[Shortage, ...]:
    """The nodes that cannot hold the smallest stage there is."""
    use, caps, names = problem.memory.use, problem.memory.caps, problem.facts.names
    least = (use.layers[:, 1:] - use.layers[:, :-1]).min(axis=1) + use.stage
    return tuple(
        Shortage(name, "a layer with its workspace", int(needed), int(free))
        for name, needed, free in zip(names, least, caps, strict=True)
        if needed > free
    )
