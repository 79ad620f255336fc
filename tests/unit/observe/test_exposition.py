"""The text for Prometheus, read back with its own parser."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from hyperlane.core import Endings, Refusals
from hyperlane.observe.exposition import KeyUse, exposition
from hyperlane.testing.fake_generator import FakeGenerator


def read(text: bytes) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(text.decode())
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def test_figures_of_the_head_are_all_there():
    status = replace(
        FakeGenerator().status(),
        requests_admitted=12,
        endings=Endings(stop=5, length=2, cancelled=1, deadline=1),
        refusals=Refusals(queue_full=4),
        queued=2,
        active=1,
        losses=3,
        completion_tokens=70,
    )
    seen = read(exposition(status))
    assert seen["hyperlane_requests_admitted_total",] == 12
    ended = {key[1]: value for key, value in seen.items() if key[0] == "hyperlane_requests_ended_total"}
    assert ended == {"stop": 5, "length": 2, "cancelled": 1, "deadline": 1, "lost": 0, "fault": 0}
    assert seen["hyperlane_requests_refused_total", "queue_full"] == 4
    assert (seen["hyperlane_requests_waiting",], seen["hyperlane_requests_running",]) == (2, 1)
    assert seen["hyperlane_pipelines_lost_total",] == 3
    assert seen["hyperlane_completion_tokens_total",] == 70
    assert seen["hyperlane_ready",] == 1


def test_every_pipeline_has_figures_of_its_own():
    one = FakeGenerator().status()
    other = replace(one, ready=False, active=2, queued=5, completion_tokens=9, losses=1)
    seen = read(exposition(replace(one, replicas=(one, other))))
    assert (seen["hyperlane_pipeline_ready", "0"], seen["hyperlane_pipeline_ready", "1"]) == (1, 0)
    assert seen["hyperlane_pipeline_requests_running", "1"] == 2
    assert seen["hyperlane_pipeline_requests_waiting", "1"] == 5
    assert seen["hyperlane_pipeline_completion_tokens_total", "1"] == 9
    assert seen["hyperlane_pipeline_losses_total", "1"] == 1
    assert len([key for key in seen if key[0] == "hyperlane_stage_compute_seconds"]) == 2 * len(one.stages)


def test_figures_of_keys_bear_their_names():
    keys = [KeyUse("anna", 1, 9, 500, (("concurrent", 2),)), KeyUse('be"n\n', 0, 1, 5)]
    seen = read(exposition(FakeGenerator().status(), keys))
    assert seen["hyperlane_key_tokens_total", "anna"] == 500
    assert seen["hyperlane_key_requests_refused_total", "anna", "concurrent"] == 2
    assert seen["hyperlane_key_requests_total", 'be"n\n'] == 1
