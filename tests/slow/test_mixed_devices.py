"""Real workers on a processor and on graphics cards in one pipeline: greedy answers as the CPU's.

Arithmetic differs between devices (int8 activations on the CPU, float16 on a card), so two likely tokens may change
places: a different token is accepted only where the CPU's own log-probabilities of the two are nearer than `NEAR`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyperlane import config
from hyperlane.cluster.announce import Child
from hyperlane.core import Address, GenerationRequest, SamplingParams, TextDelta, TextGenerator
from hyperlane.node import Serving, start_serving
from hyperlane.stage import onnx_webgpu
from hyperlane.stage.cuda import device_count
from hyperlane.testing.tiny_models import TinyModel, write_tiny_model

NEW_TOKENS = 48
PROMPT_LENGTHS = (5, 17, 64, 129, 300)
NEAR = 0.3
"""Of a log-probability."""

TOP = 5
READY_S = 120

os.environ.setdefault(onnx_webgpu.SOFTWARE, "1")
NEEDED = set(os.environ.get("HYPERLANE_TEST_NEEDS", "").split())
HERE = {"cpu": 1, "cuda": device_count(), "webgpu": onnx_webgpu.count()}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens, and for each position the log-probabilities of the likeliest ones."""

    tokens: Sequence[int]
    likely: Sequence[dict[int, float]]


@contextmanager
def workers_on(devices: Sequence[str], folder: Path) -> Iterator[list[Address]]:
    """A worker process for each device."""
    with ExitStack() as stack:
        children = []
        for index, device in enumerate(devices):
            command = [sys.executable, "-m", "hyperlane", "worker", "--listen", "127.0.0.1:0", "--announce"]
            home = {"HYPERLANE_HOME": str(folder / f"{index}")}
            child = Child([*command, "--device", device], folder / f"{device}.log", os.environ | home)
            stack.callback(lambda child=child: child.stop(time.monotonic() + 20))
            children.append(child)
        said = [child.announcement(time.monotonic() + READY_S) for child in children]
        yield [one.address for one in said]


@contextmanager
def serving_over(devices: Sequence[str], model: Path, layers: int, folder: Path) -> Iterator[Serving]:
    """The model cut into equal parts over workers on these devices, in this order."""
    with workers_on(devices, folder) as addresses:
        bounds = [layers * index // len(devices) for index in range(len(devices) + 1)]
        places = [f"{at}={bounds[i]}:{bounds[i + 1]}" for i, at in enumerate(addresses)]
        settings = {"workers": tuple(addresses), "layers": tuple(places), "measure": "never", "context": 512}
        with start_serving(config.load(config.ServeConfig, model=str(model), slots=4, wire="raw", **settings)) as found:
            yield found


def prompts(generator: TextGenerator) -> list[tuple[int, ...]]:
    text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    tokens = generator.encode(text)
    return [tokens[31 * number : 31 * number + length] for number, length in enumerate(PROMPT_LENGTHS)]


def answers(generator: TextGenerator, given: Sequence[tuple[int, ...]]) -> list[Answer]:
    """Greedy, all prompts at once."""
    params = SamplingParams(temperature=0.0, logprobs=TOP)
    streams = [
        generator.submit(GenerationRequest("mixed", prompt, params, NEW_TOKENS, ignore_eos=True)) for prompt in given
    ]
    found = []
    for stream in streams:
        tokens: list[int] = []
        likely: list[dict[int, float]] = []
        for event in stream:
            if isinstance(event, TextDelta):
                tokens += event.tokens
                likely += [{one.token: one.logprob for one in choice.top} for choice in event.logprobs]
        assert len(tokens) == len(likely) == NEW_TOKENS
        found.append(Answer(tokens, likely))
    return found


def check_alike(reference: Answer, other: Answer, where: str) -> int:
    """Fail where another token than the reference's is no near one; how many are the same before that."""
    for at, (wanted, got) in enumerate(zip(reference.tokens, other.tokens, strict=True)):
        if wanted != got:
            likely = reference.likely[at]
            lead = likely[wanted] - likely.get(got, -1e9)
            assert lead < NEAR, f"{where}: token {at} is {got}, not {wanted}, which leads by {lead:.3f}"
            return at
    return NEW_TOKENS


@pytest.fixture
def tiny_path(tmp_path: Path) -> Path:
    """What a driver in software computes in seconds."""
    return write_tiny_model(tmp_path / "tiny.gguf", TinyModel(type="Q4_0", hidden=64, layers=4, context=512))


@pytest.mark.parametrize("model", ["tiny", "smollm2", "gemma3"])
@pytest.mark.parametrize("devices", ["cpu webgpu", "cpu cuda", "cpu cuda webgpu", "webgpu cuda cpu"])
def test_a_pipeline_over_several_kinds_of_devices_answers_as_the_cpu_does(devices, model, request, tmp_path):
    kinds = devices.split()
    if missing := [kind for kind in kinds if not HERE[kind]]:
        assert not set(missing) & NEEDED, f"there must be a device of {' and '.join(missing)}"
        pytest.skip(f"no device of {' or '.join(missing)}")
    path = request.getfixturevalue(f"{model}_path")
    with start_serving(config.load(config.ServeConfig, model=str(path), local_workers=1, device="cpu", slots=4)) as cpu:
        given, layers = prompts(cpu.service), cpu.plan.model.layers
        reference = answers(cpu.service, given)
    with serving_over(kinds, path, layers, tmp_path) as mixed:
        assert len(mixed.plan.stages) == len(kinds)
        found = answers(mixed.service, given)
    same = [
        check_alike(wanted, got, f"{model} over {devices}, prompt of {len(prompt)}")
        for wanted, got, prompt in zip(reference, found, given, strict=True)
    ]
    print(f"{model} over {devices}: the first {same} of {NEW_TOKENS} tokens are the CPU's")
    assert sum(same) >= NEW_TOKENS * len(given) // 3
