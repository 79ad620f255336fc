"""What is run, in which order, and how runs become figures."""

import pytest

from hyperlane.bench.report import figures_text
from hyperlane.bench.suite import Suite, measure
from hyperlane.bench.workload import Arrivals, Sample, Workload, sample_of


def test_medians_of_every_length_and_number_of_streams():
    ran, kept = [], []

    def run(workload: Workload, number: int) -> Sample:
        ran.append((workload, number))
        if workload.new_tokens == 1:
            return Sample(0.1 * (number + 1), 100.0 * (number + 1), 0.0, workload.prompt_tokens + 1)
        return Sample(0.01, 0.0, workload.streams * (40.0, 10.0, 50.0)[number % 3])

    suite = Suite(prompts=(64, 256), new_tokens=32, streams=(1, 4), repetitions=3)
    figures = measure(run, suite, kept.append)
    assert [(one.tokens, one.ttft_s, one.rate) for one in figures.prompts] == [(65, 0.2, 200.0), (257, 0.2, 200.0)]
    assert [(one.streams, one.rate, one.token_ms) for one in figures.decodes] == [(1, 40.0, 25.0), (4, 160.0, 25.0)]
    assert kept == [Workload(64, 1), Workload(256, 1), Workload(16, 33), Workload(16, 33, 4)]
    assert len(ran) == 1 + 4 * 3
    lines = figures_text(figures).splitlines()
    assert lines[1].split() == ["65", "200", "ms", "200", "tokens/s"]
    assert lines[-1].split() == ["4", "160.0", "tokens/s", "25.0", "ms", "10", "ms"]


def test_decoding_counts_while_all_streams_decode():
    streams = [Arrivals(((1.0, 1), (2.0, 2), (3.0, 2))), Arrivals(((1.5, 1), (2.5, 1), (4.0, 9)))]
    sample = sample_of(streams, began=0.5, prompt_tokens=30)
    assert sample.ttft_s == pytest.approx(0.75)
    assert sample.prefill_rate == pytest.approx(30.0)
    assert sample.decode_rate == pytest.approx((2 + 2 + 1) / 1.5)
    assert sample.prompt_tokens == 15
