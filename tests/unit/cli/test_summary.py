from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hyperlane import summary
from hyperlane.answer import Answer
from hyperlane.core import (
    Achieved,
    Address,
    Endings,
    Finished,
    FinishReason,
    HeadStatus,
    LinkStatus,
    Precision,
    Prediction,
    Refusals,
    RequestTimings,
    SpareStatus,
    Usage,
)
from hyperlane.plain import plain, revive
from hyperlane.testing.fake_generator import FakeGenerator
from hyperlane.testing.toy import toy_facts, toy_plan


@pytest.fixture
def status() -> HeadStatus:
    status = FakeGenerator().status()
    stages = tuple(
        replace(stage, computed_us=1500.0, overhead_us=40.0, sent_bytes_per_token=2304.0 / (index + 1))
        for index, stage in enumerate(status.stages)
    )
    return replace(status, stages=stages, sent_bytes_per_token=76.0)


@pytest.fixture
def answer() -> Answer:
    return Answer("Blue.", Finished(FinishReason.STOP, Usage(9, 5), RequestTimings(0.0, 0.25, 2.0)))


def test_a_status_survives_json(status):
    assert revive(HeadStatus, json.loads(json.dumps(plain(status)))) == status


def test_a_status_of_several_pipelines_survives_json_and_names_each(status):
    other = replace(status, ready=False, active=1, losses=2)
    both = replace(status, replicas=(status, other))
    assert revive(HeadStatus, json.loads(json.dumps(plain(both)))) == both
    rows = summary.replicas_text(both).splitlines()
    assert rows[1].split()[:2] == ["0", "ready"]
    assert rows[2].split()[:3] == ["1", "not", "ready"]
    assert summary.replicas_text(both) in summary.status_text(both)


def test_the_spare_is_named_with_what_it_holds_or_why_there_is_none(status):
    spare = SpareStatus("ready", "local3", Address("127.0.0.1", 7426), ("0-9", "10-19"), 3, "its memory holds 2 of 3")
    text = summary.status_text(replace(status, spare=spare))
    assert "spare: local3 at 127.0.0.1:7426, ready, holds layers 0-9, 10-19 (2 of 3 stages); its memory holds" in text
    none = replace(status, spare=SpareStatus("none", reason="no worker was left"))
    assert "spare: none, no worker was left" in summary.status_text(none)
    planned = SpareStatus("planned", "b", Address("b", 1), ("0-3",), 1)
    assert summary.spare_line(planned) == "spare: b at b:1, planned, would hold layers 0-3 (1 of 1 stages)"


@pytest.mark.parametrize("data", [None, [], {}, {"model": 3}, {"model": "x", "plan": []}])
def test_what_is_no_status_is_refused(data):
    with pytest.raises(ValueError, match=r"stands where|this is no"):
        revive(HeadStatus, data)


def test_what_has_no_plain_form_is_refused():
    with pytest.raises(TypeError, match="object"):
        plain(object())


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 << 20, "200 MiB"), (3 << 40, "3.0 TiB")]
)
def test_bytes_have_units(count, text):
    assert summary.human_bytes(count) == text


def test_an_answers_summary_names_layers_times_and_links(answer, status):
    lines = summary.answer_summary(answer, status).splitlines()
    assert lines[1].split()[:2] == ["0", "0-1"]
    assert lines[2].split()[:2] == ["1", "2-3"]
    assert lines[3] == "bytes per token: head → 0 76 B, 0 → 1 2.2 KiB, 1 → head 1.1 KiB"
    assert lines[4] == "9 prompt + 5 answer tokens, first after 0.25 s, then 2.0 tokens/s (stop)"


def test_an_answer_as_json_holds_what_the_summary_says(answer, status):
    found = json.loads(json.dumps(summary.answer_plain(answer, status)))
    assert found["answer"] == "Blue."
    assert found["usage"] == {"prompt_tokens": 9, "completion_tokens": 5, "cached_tokens": 0, "paused_s": 0.0}
    assert found["timings"]["tokens_per_s"] == 2.0
    assert [stage["layers"] for stage in found["plan"]["stages"]] == [{"first": 0, "last": 2}, {"first": 2, "last": 4}]
    assert [link["bytes_per_token"] for link in found["links"]] == [76.0, 2304.0, 1152.0]


def test_columns_are_as_wide_as_their_widest_cell():
    assert summary.columns([("a", "b"), ("long", "x")]) == "a     b\nlong  x"


def test_a_status_for_people_names_load_and_stages(status):
    text = summary.status_text(status)
    assert "toy: ready" in text
    assert "0 of 4 slots busy" in text
    assert "127.0.0.1:1" in text


def test_a_plan_for_people_has_a_row_for_each_stage(status):
    assert len(summary.plan_table(status.plan).splitlines()) == 1 + len(status.plan.stages)
    assert summary.plan_line(status.plan) == "toy: 4 layers on 2 worker(s), 4 slots of 512 tokens"


def test_each_link_between_stages_is_named_with_what_it_carries():
    raw, int8, int4, _ = Precision
    plan = replace(toy_plan(toy_facts(), stages=3), precisions=(raw, int8, int4, raw))
    assert summary.carried_line(plan) == "links between stages: 0 → 1 int8, 1 → 2 int4"
    assert summary.carried_line(toy_plan(toy_facts(), stages=1)) == ""
    assert [row.split()[-1] for row in summary.plan_table(plan).splitlines()] == ["sends", "int8", "int4", "candidates"]


def test_requests_are_counted_by_how_they_ended_and_why_they_were_refused(status):
    counted = replace(
        status,
        requests_ended=9,
        endings=Endings(stop=5, length=3, deadline=1),
        requests_refused=2,
        refusals=Refusals(queue_full=2),
    )
    assert "9 ended (5 stop, 3 length, 1 deadline), 2 refused (2 queue full);" in summary.status_text(counted)
    quiet = replace(status, requests_ended=0, endings=Endings(), requests_refused=0, refusals=Refusals())
    assert "0 ended, 0 refused;" in summary.status_text(quiet)


def test_a_link_within_one_machine_is_marked_as_such(status):
    stages = toy_plan(toy_facts(), stages=3).stages
    hosts = ("a", "a", "b")
    placed = (replace(s, worker=replace(s.worker, host=host)) for s, host in zip(stages, hosts, strict=True))
    plan = replace(toy_plan(toy_facts(), stages=3), stages=tuple(placed))
    assert summary.carried_line(plan) == "links between stages: 0 → 1 raw (same machine), 1 → 2 raw"
    assert "raw (same machine)" in summary.plan_table(plan).splitlines()[1]
    links = (
        LinkStatus("n0", "n1", Address("127.0.0.1", 1), 40.0, 4e9, True, same_machine=True),
        LinkStatus("n1", "n2", Address("10.0.0.2", 1), 400.0, 1e8, True),
    )
    rows = summary.paths_table(replace(status, links=links)).splitlines()
    assert ["same machine" in row for row in rows] == [False, True, False]
    assert "network" in rows[2]


def test_predicted_speed_stands_beside_achieved(status):
    said = Prediction(0.01, 1.5, 512, 160.0, 4, 2, 4, (0.004, 0.005))
    plan = replace(status.plan, prediction=said)
    achieved = Achieved(token_s=0.0125, many_rate=150.0, streams=4, ttft_s=0.4, prompt_tokens=100)
    full = replace(status, plan=plan, achieved=achieved)
    rows = [line.split("  ") for line in summary.speeds_table(full).splitlines()]
    assert [[cell.strip() for cell in row if cell] for row in rows[1:]] == [
        ["one stream", "100.0 tokens/s", "80.0 tokens/s"],
        ["many streams", "160.0 tokens/s (4)", "150.0 tokens/s (4)"],
        ["first token", "1.50 s (512 prompt tokens, in pieces of 64)", "0.40 s (100 prompt tokens)"],
    ]
    assert summary.prediction_line(plan) == (
        "predicted: 100.0 tokens/s for one stream, 160.0 for 4 streams, first token after 1.50 s "
        "(512 prompt tokens, in pieces of 64)"
    )
    assert revive(HeadStatus, json.loads(json.dumps(plain(full)))) == full


def test_what_was_not_measured_is_a_dash(status):
    assert summary.prediction_line(status.plan) == ""
    assert summary.speeds_table(status).count("-") == 6


def test_each_measured_path_is_shown_with_its_speed_the_plans_own_first(status):
    there = Address("10.0.0.2", 7421)
    links = (LinkStatus("n0", "n1", there, 800.0, 117e6), LinkStatus("head", "n1", there, 250.0, 12.5e6, in_plan=True))
    text = summary.status_text(replace(status, links=links))
    rows = [line.split() for line in text.splitlines() if "10.0.0.2:7421" in line]
    assert rows == [
        ["head", "n1", "10.0.0.2:7421", "0.25", "ms", "11.9", "MiB/s", "network", "yes"],
        ["n0", "n1", "10.0.0.2:7421", "0.80", "ms", "112", "MiB/s", "network", "no"],
    ]
    full = replace(status, links=links)
    assert revive(HeadStatus, json.loads(json.dumps(plain(full)))) == full
