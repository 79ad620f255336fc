"""What one running pipeline does: prefill, decode, the overhead of a hop, memory. Knows no command line."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from hyperlane.bench.machine import private_bytes
from hyperlane.bench.workload import Workload, run_workload
from hyperlane.core import TextGenerator


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians of several runs. Rates in tokens per second, of all streams together.

    `hop_us`: all of a token's time that is not engine compute, divided by the links of the ring, with one stream.
    `private_mib`: of this process and then of each local worker, after the runs.
    """

    prefill: float
    ttft_ms: float
    decode: float
    decode_of_many: float
    hop_us: float
    private_mib: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Workloads:
    """What is run: a long prompt, one stream that decodes, and many of them."""

    long_prompt: Workload
    one_stream: Workload
    many_streams: Workload


def workloads(prompt_tokens: int = 512, new_tokens: int = 128, streams: int = 8) -> Workloads:
    """The three of them; one token more is generated, because the first belongs to the prompt's time."""
    return Workloads(Workload(prompt_tokens, 1), Workload(16, new_tokens + 1), Workload(16, new_tokens + 1, streams))


def measure(generator: TextGenerator, work: Workloads, repetitions: int) -> Figures:
    """Warm up, then take medians. Raises HyperlaneError when a request fails."""
    run_workload(generator, work.one_stream)
    prefill = [run_workload(generator, work.long_prompt, seed) for seed in range(repetitions)]
    many = [run_workload(generator, work.many_streams, seed) for seed in range(repetitions)]
    one = [run_workload(generator, work.one_stream, seed) for seed in range(repetitions)]
    return Figures(
        prefill=statistics.median(sample.prefill_rate for sample in prefill),
        ttft_ms=1e3 * statistics.median(sample.ttft_s for sample in prefill),
        decode=statistics.median(sample.decode_rate for sample in one),
        decode_of_many=statistics.median(sample.decode_rate for sample in many),
        hop_us=generator.status().hop_us,
        private_mib=tuple(private_bytes(pid) / 2**20 for pid in (psutil.Process().pid, *local_workers())),
    )


def local_workers() -> Sequence[int]:
    """Process ids of the worker processes that this process started, oldest first."""
    children = sorted(psutil.Process().children(), key=lambda process: float(process.create_time()))
    return [process.pid for process in children if "worker" in process.cmdline()]
