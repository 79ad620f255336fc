"""Why a candidate wins, in one sentence with the numbers of the table. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hyperlane.cluster.planner.candidate import Candidate, Kind
from hyperlane.cluster.planner.facts import Objective


def reason(winner: Candidate, candidates: Sequence[Candidate], objective: Objective) -> str:
    """What fewer nodes and what more nodes would do, against the winner."""
    nodes = sum(candidate.kind is Kind.NODE for candidate in candidates)
    size = len(winner.workers)
    single = [c for c in candidates if c.fits and len(c.pipelines) == 1]
    fewer = _best((c for c in single if len(c.workers) < size), objective)
    more = _best((c for c in single if len(c.workers) > size), objective)
    said = [f"{size} of {nodes} nodes" if nodes > 1 else "the only node"]
    if more is not None:
        said.append(_more(winner, more, objective))
    if fewer is not None:
        said.append(f"on {_list(fewer.workers)} alone {_difference(fewer, winner, objective)}")
    elif size > 1:
        said.append("no smaller number of nodes holds the model")
    refused = [c for c in candidates if c.kind is Kind.ALL and not c.fits and c.reason]
    said += [f"not all: {candidate.reason}" for candidate in refused]
    replicas = [c for c in candidates if c.kind is Kind.REPLICAS]
    said += [_replicas(candidate, winner) for candidate in replicas]
    return f"{said[0]}: {'; '.join(said[1:])}" if len(said) > 1 else said[0]


def instead(asked: Candidate, best: Candidate, objective: Objective) -> str:
    """What the best candidate would do in place of one that was asked for."""
    other = f"on {_names(best)}" if best.workers != asked.workers else "with other layers on the same nodes"
    if objective is Objective.THROUGHPUT:
        return f"{other} many streams would have {best.many_rate:.1f} tokens/s instead of {asked.many_rate:.1f}"
    return f"{other} a token would take {_ms(best.token_s)} instead of {_ms(asked.token_s)}"


def _best(candidates: Iterable[Candidate], objective: Objective) -> Candidate | None:
    if objective is Objective.LATENCY:
        return min(candidates, key=lambda candidate: candidate.token_s, default=None)
    return max(candidates, key=lambda candidate: candidate.many_rate, default=None)


def _more(winner: Candidate, more: Candidate, objective: Objective) -> str:
    """What the best larger candidate's further nodes cost, and what they save elsewhere."""
    added = [name for name in more.workers if name not in winner.workers]
    if objective is Objective.THROUGHPUT or len(added) != len(more.workers) - len(winner.workers):
        return f"on {_names(more)} {_difference(more, winner, objective)}"
    worse = more.token_s - winner.token_s
    stages = [stage for stage in more.best.stages if stage.worker in added]
    layers = sum(len(stage.layers) for stage in stages)
    taken = sum(stage.decode_s + stage.hop_s for stage in stages)
    whose = "'s" if len(added) == 1 else ""
    spent = f"{_list(added)}{whose} {layers} layer{'s' * (layers > 1)} and hop take {_ms(taken)} of a token"
    if worse <= 0:
        return f"with {_list(added)} {_within_tie(more, winner)}"
    return f"{spent} and save {_ms(taken - worse)} elsewhere, {_ms(worse)} more in all"


def _difference(other: Candidate, winner: Candidate, objective: Objective) -> str:
    if objective is Objective.LATENCY:
        worse = other.token_s - winner.token_s
        if worse <= 0:
            return _within_tie(other, winner)
        return f"a token takes {_ms(worse)} more ({_ms(other.token_s)} instead of {_ms(winner.token_s)})"
    return f"many streams have {other.many_rate:.1f} tokens/s instead of {winner.many_rate:.1f}"


def _within_tie(other: Candidate, winner: Candidate) -> str:
    """For a candidate that is faster by less than what counts."""
    later = other.ttft_s - winner.ttft_s
    also = f", but the first token comes {_ms(later)} later" if later > 0 else ""
    return f"a token takes {_ms(winner.token_s - other.token_s)} less, too little to count{also}"


def _replicas(replicas: Candidate, winner: Candidate) -> str:
    count = len(replicas.pipelines)
    return (
        f"{count} replicas would do {replicas.many_rate:.1f} tokens/s for many streams, the one pipeline "
        f"{winner.many_rate:.1f}"
    )


def _names(candidate: Candidate) -> str:
    return f"all {len(candidate.workers)} nodes" if candidate.kind is Kind.ALL else _list(candidate.workers)


def _list(names: Sequence[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.0f} µs"
