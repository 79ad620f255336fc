"""Plans, statuses and answers as text for people and as plain data for JSON. Pure; knows no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from hyperlane.answer import Answer
from hyperlane.core import Endings, HeadStatus, Plan, Refusals, SpareStatus
from hyperlane.plain import Plain, plain


def human_bytes(count: float) -> str:
    """Bytes with a unit: `512 B`, `61.2 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, each column as wide as its widest cell."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def plan_table(plan: Plan) -> str:
    """Which layers run where, the bytes they were counted with, and what is sent on."""
    head = ("stage", "layers", "worker", "device", "weights", "KV", "workspace", "free", "sends")
    rows = [
        (
            str(stage.index),
            str(stage.layers),
            f"{stage.worker.control}",
            f"{stage.worker.device} × {stage.worker.threads}" if stage.worker.threads else stage.worker.device,
            human_bytes(stage.weight_bytes),
            human_bytes(stage.kv_bytes),
            human_bytes(stage.workspace_bytes),
            human_bytes(stage.worker.memory_free),
            f"{precision}{_where(plan, stage.index)}" if stage is not plan.stages[-1] else "candidates",
        )
        for stage, precision in zip(plan.stages, plan.precisions[1:], strict=True)
    ]
    return columns([head, *rows])


def plan_line(plan: Plan) -> str:
    """The plan in one line."""
    model = plan.model
    return (
        f"{model.name}: {model.layers} layers on {len(plan.stages)} worker(s), "
        f"{plan.slots} slots of {plan.context} tokens"
    )


def carried_line(plan: Plan) -> str:
    """What the links between stages carry, in one line; empty where there are none."""
    links = [
        f"{stage.index} → {stage.index + 1} {plan.precisions[stage.index + 1]}{_where(plan, stage.index)}"
        for stage in plan.stages[:-1]
    ]
    return "links between stages: " + ", ".join(links) if links else ""


def _where(plan: Plan, index: int) -> str:
    """Behind a link from that stage to the next one: whether it stays on one machine."""
    here, following = plan.stages[index].worker, plan.stages[index + 1].worker
    return " (same machine)" if here.shares_host_with(following) else ""


def prediction_line(plan: Plan) -> str:
    """What a plan is expected to do, in one line; empty for a plan that was made without measurements."""
    said = plan.prediction
    if said is None:
        return ""
    many = f", {said.many_rate:.1f} for {said.streams} streams" if said.streams > 1 else ""
    return (
        f"predicted: {1 / said.token_s:.1f} tokens/s for one stream{many}, first token after {said.ttft_s:.2f} s "
        f"({said.prompt_tokens} prompt tokens, in pieces of {said.chunk_tokens})"
    )


def speeds_table(status: HeadStatus) -> str:
    """Predicted beside achieved speed; `-` for what was not measured."""
    plan, achieved = status.plan.prediction, status.achieved
    rows = [
        (
            "one stream",
            f"{1 / plan.token_s:.1f} tokens/s" if plan else "-",
            f"{1 / achieved.token_s:.1f} tokens/s" if achieved.token_s else "-",
        ),
        (
            "many streams",
            f"{plan.many_rate:.1f} tokens/s ({plan.streams})" if plan else "-",
            f"{achieved.many_rate:.1f} tokens/s ({achieved.streams})" if achieved.streams else "-",
        ),
        (
            "first token",
            f"{plan.ttft_s:.2f} s ({plan.prompt_tokens} prompt tokens, in pieces of {plan.chunk_tokens})"
            if plan
            else "-",
            f"{achieved.ttft_s:.2f} s ({achieved.prompt_tokens} prompt tokens)" if achieved.prompt_tokens else "-",
        ),
    ]
    return columns([("speed", "predicted", "achieved"), *rows])


def stages_table(status: HeadStatus) -> str:
    """Which layers ran where, and what a step took there."""
    head = ("stage", "layers", "worker", "device", "computes", "other", "waits", "sends on")
    rows = [
        (
            str(stage.plan.index),
            str(stage.plan.layers),
            str(stage.plan.worker.control),
            stage.plan.worker.device,
            f"{stage.computed_us / 1000:.2f} ms",
            f"{stage.overhead_us:.0f} µs",
            f"{stage.waited_us / 1000:.2f} ms",
            f"{human_bytes(stage.sent_bytes_per_token)}/token",
        )
        for stage in status.stages
    ]
    return columns([head, *rows])


def nodes_table(status: HeadStatus) -> str:
    """Who is there, how each was found, and what it has."""
    head = ("node", "state", "address", "device", "memory free", "round trip", "found by", "in plan")
    rows = [
        (
            node.name,
            node.state,
            str(node.address or "-"),
            node.device or "-",
            f"{human_bytes(node.memory_free)} of {human_bytes(node.memory_total)}" if node.memory_total else "-",
            f"{node.rtt_us / 1000:.2f} ms" if node.rtt_us else "-",
            ", ".join(node.found),
            "yes" if node.in_plan else "no",
        )
        for node in status.nodes
    ]
    reasons = [f"{node.name}: {node.reason}" for node in status.nodes if node.reason]
    return "\n".join([columns([head, *rows]), *reasons, *status.troubles])


def paths_table(status: HeadStatus) -> str:
    """Round trip and bandwidth of what was measured between nodes, the running plan's links first."""
    head = ("from", "to", "address", "round trip", "bandwidth", "over", "in plan")
    rows = [
        (
            link.source,
            link.target,
            str(link.address),
            f"{link.rtt_us / 1000:.2f} ms",
            f"{human_bytes(link.bytes_per_s)}/s",
            "same machine" if link.same_machine else "network",
            "yes" if link.in_plan else "no",
        )
        for link in sorted(status.links, key=lambda link: not link.in_plan)
    ]
    return columns([head, *rows])


def links_line(status: HeadStatus) -> str:
    """Bytes per token on each link of the ring."""
    hops = (f"{source} → {target} {human_bytes(sent)}" for source, target, sent in _links(status))
    return "bytes per token: " + ", ".join(hops)


def replica_plans(plans: Sequence[Plan]) -> str:
    """Which workers form which pipeline."""
    return "\n\n".join(f"pipeline {number}:\n{plan_table(plan)}" for number, plan in enumerate(plans))


def replicas_text(status: HeadStatus) -> str:
    """What each of several pipelines does."""
    head = ("pipeline", "state", "plan", "busy", "waiting", "lost", "a round", "layers and workers")
    rows = [
        (
            str(number),
            "ready" if replica.ready else "not ready",
            str(replica.epoch),
            f"{replica.active} of {replica.slots}",
            str(replica.queued),
            str(replica.losses),
            f"{replica.ring_us / 1000:.2f} ms",
            ", ".join(f"{stage.layers} on {stage.worker.control}" for stage in replica.plan.stages),
        )
        for number, replica in enumerate(status.replicas)
    ]
    return columns([head, *rows])


def spare_line(spare: SpareStatus) -> str:
    """Who stands by, and with what."""
    if spare.state == "none":
        return f"spare: none, {spare.reason}"
    holds = "would hold" if spare.state == "planned" else "holds"
    held = f"{holds} layers {', '.join(spare.layers)}" if spare.layers else f"{holds} nothing yet"
    why = f"; {spare.reason}" if spare.reason else ""
    count = f"{len(spare.layers)} of {spare.stages} stages"
    return f"spare: {spare.name} at {spare.address}, {spare.state}, {held} ({count}){why}"


def status_text(status: HeadStatus) -> str:
    """All that `hyperlane status` shows."""
    load = f"{status.active} of {status.slots} slots busy, {status.queued} waiting"
    counts = (
        f"{status.requests_admitted} requests admitted, {status.requests_ended} ended{_by_reason(status.endings)}, "
        f"{status.requests_refused} refused{_by_reason(status.refusals)}; {status.prompt_tokens} prompt and "
        f"{status.completion_tokens} answer tokens"
    )
    if status.losses:
        counts += f"; {status.losses} pipeline(s) lost, their requests went on with the next one"
    cached = (
        f"{status.requests_continued} requests went on from what a slot held: {status.cached_tokens} prompt tokens "
        "not computed again"
    )
    state = "ready" if status.ready else "not ready"
    return "\n".join(
        (
            f"{status.model}: {state}, plan {status.epoch}, up {status.uptime_s:.0f} s",
            f"{load}; a round of the ring takes {status.ring_us / 1000:.2f} ms",
            counts,
            cached,
            "",
            *([replicas_text(status), ""] if status.replicas else []),
            stages_table(status),
            links_line(status),
            *([spare_line(status.spare)] if status.spare is not None else []),
            "",
            speeds_table(status),
            *(["", nodes_table(status)] if status.nodes or status.troubles else []),
            *(["", paths_table(status)] if status.links else []),
        )
    )


def _by_reason(counts: Endings | Refusals) -> str:
    """Those that happened, in brackets; empty when none did."""
    found = [(reason.name.replace("_", " "), getattr(counts, reason.name)) for reason in fields(counts)]
    said = ", ".join(f"{count} {name}" for name, count in found if count)
    return f" ({said})" if said else ""


def answer_line(answer: Answer) -> str:
    """Tokens and times of one answer."""
    usage, timings = answer.usage, answer.timings
    rate = f", then {answer.tokens_per_s:.1f} tokens/s" if answer.tokens_per_s else ""
    return (
        f"{usage.prompt_tokens} prompt + {usage.completion_tokens} answer tokens, "
        f"first after {timings.ttft_s:.2f} s{rate} ({answer.finish_reason})"
    )


def answer_summary(answer: Answer, status: HeadStatus) -> str:
    """What is shown after an answer: which layers ran where, bytes on the links, tokens and times."""
    return "\n".join((stages_table(status), links_line(status), answer_line(answer)))


def answer_plain(answer: Answer, status: HeadStatus) -> Plain:
    """An answer with usage, timings, plan and measurements, for JSON."""
    timings = answer.timings
    return {
        "model": status.model,
        "answer": str(answer),
        "finish_reason": str(answer.finish_reason),
        "usage": plain(answer.usage),
        "timings": {
            "queued_s": timings.queued_s,
            "ttft_s": timings.ttft_s,
            "decode_s": timings.decode_s,
            "tokens_per_s": answer.tokens_per_s,
        },
        "plan": plain(status.plan),
        "links": [{"from": source, "to": target, "bytes_per_token": sent} for source, target, sent in _links(status)],
        "stages": [
            {
                "index": stage.plan.index,
                "computed_us": stage.computed_us,
                "waited_us": stage.waited_us,
                "overhead_us": stage.overhead_us,
            }
            for stage in status.stages
        ],
    }


def _links(status: HeadStatus) -> list[tuple[str, str, float]]:
    """Who sends to whom, and how many bytes per token."""
    names = ["head", *(str(stage.plan.index) for stage in status.stages), "head"]
    sent = [status.sent_bytes_per_token, *(stage.sent_bytes_per_token for stage in status.stages)]
    return list(zip(names, names[1:], sent, strict=False))
