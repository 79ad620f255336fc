"""A survey as text for a terminal. Pure; knows no terminal."""

from __future__ import annotations

from hyperlane.cluster.planner.candidate import Candidate, Kind, PipelineForecast
from hyperlane.cluster.planner.survey import Survey
from hyperlane.summary import columns, human_bytes

_HEAD = (
    "",
    "candidate",
    "nodes and layers",
    "chunk",
    "first token",
    "answer",
    "tokens/s, one",
    "tokens/s, many",
    "groups",
)


def survey_text(survey: Survey) -> str:
    """The table of candidates, the memory of the winner's devices, and why it wins; or the refusal."""
    parts = [columns([_HEAD, *(_row(candidate, survey.winner) for candidate in survey.candidates)])]
    refused = [candidate for candidate in survey.candidates if not candidate.fits]
    if refused and survey.refusal is None:
        parts.append("\n".join(f"{_name(candidate)}: {_lack(candidate)}" for candidate in refused))
    if survey.refusal is not None:
        parts.append(survey.refusal.text())
    if survey.winner is not None:
        parts.append("\n".join(memory_text(pipeline) for pipeline in survey.winner.pipelines))
        if survey.unused:
            parts.append(
                "not used: " + ", ".join(f"{n.worker} ({human_bytes(n.free_bytes)} free)" for n in survey.unused)
            )
        parts.append(survey.why)
    return "\n\n".join(part for part in parts if part)


def memory_text(pipeline: PipelineForecast) -> str:
    """What one pipeline takes on each device, and each stage's share of a token."""
    head = (
        "stage",
        "node",
        "layers",
        "computes",
        "then hop",
        "weights",
        "KV",
        "workspace",
        "process",
        "used",
        "free after",
    )
    rows = [
        (
            str(number),
            stage.worker,
            str(stage.layers),
            f"{stage.decode_s * 1e3:.2f} ms",
            f"{stage.hop_s * 1e3:.2f} ms{', same machine' if stage.same_machine else ''}",
            human_bytes(stage.weight_bytes),
            human_bytes(stage.kv_bytes),
            human_bytes(stage.workspace_bytes),
            human_bytes(stage.process_bytes),
            human_bytes(stage.used_bytes),
            human_bytes(stage.free_bytes),
        )
        for number, stage in enumerate(pipeline.stages)
    ]
    return columns([head, *rows])


def _row(candidate: Candidate, winner: Candidate | None) -> tuple[str, ...]:
    mark = "*" if candidate is winner else ""
    if not candidate.fits:
        return (mark, _name(candidate), "does not fit", *[""] * (len(_HEAD) - 3))
    groups = "+".join(str(pipeline.forecast.groups) for pipeline in candidate.pipelines)
    return (
        mark,
        _name(candidate),
        " | ".join(_stages(pipeline) for pipeline in candidate.pipelines),
        str(candidate.best.forecast.chunk_tokens),
        f"{candidate.ttft_s:.2f} s",
        f"{candidate.best.forecast.answer_s:.1f} s",
        f"{1 / candidate.token_s:.1f}",
        f"{candidate.many_rate:.1f}",
        groups,
    )


def _name(candidate: Candidate) -> str:
    if candidate.kind is Kind.NODE:
        return "one node" if candidate.fits else f"{candidate.workers[0]} alone"
    if candidate.kind is Kind.SUBSET:
        return f"best {len(candidate.workers)} nodes" + ("" if candidate.proved else " (found)")
    if candidate.kind is Kind.ALL:
        return f"all {len(candidate.workers)} nodes" + ("" if candidate.proved else " (found)")
    if candidate.kind is Kind.REPLICAS:
        return f"{len(candidate.pipelines)} replicas"
    return str(candidate.kind)


def _stages(pipeline: PipelineForecast) -> str:
    return " → ".join(f"{stage.worker} {stage.layers}" for stage in pipeline.stages)


def _lack(candidate: Candidate) -> str:
    lacks = [
        f"{s.worker} lacks {human_bytes(s.missing_bytes)} for {s.what} "
        f"({human_bytes(s.needed_bytes)} of {human_bytes(s.free_bytes)} free)"
        for s in candidate.shortages
    ]
    return "; ".join(lacks) or candidate.reason
