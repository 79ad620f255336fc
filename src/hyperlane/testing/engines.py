"""One conformance suite for every `Engine`, real and fake. Knows no implementation: a harness brings it.

Each check is a function, so that a failing one is named. Other stage boundaries, other rows beside a row, another cut
of a prompt: logits are the same within the harness's tolerance, which is 0 for the arithmetic that users get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from hyperlane.core import CANDIDATES_K, Epoch, HeadId, LayerRange, ModelFacts, Precision, Row, StageSpec
from hyperlane.errors import ProtocolError
from hyperlane.stage.engine import Engine
from hyperlane.testing.engine_banks import banks_change_nothing
from hyperlane.wire.candidates import Candidates, candidates_bytes, split

Floats = npt.NDArray[np.float32]
Answers = list[list[Candidates | Floats]]

SLOTS, CONTEXT, STEP_TOKENS = 6, 96, 64
PROMPT_TOKENS = 24


Logits = npt.NDArray[Any] | Sequence[float]


@dataclass(frozen=True, slots=True)
class EngineHarness:
    """A model of at least 3 layers and how to make an engine of one of its stages. `tolerance`: of a logit.

    `precision`: of the links between stages; where it loses something, one and the same number of stages is compared:
    `least_stages` for all.
    """

    facts: ModelFacts
    make: Callable[[StageSpec], Engine]
    tolerance: float = 0.0
    precision: Precision = Precision.RAW
    least_stages: int = 1

    def same(self, one: Logits, other: Logits) -> None:
        """Fail unless these logits are the same."""
        np.testing.assert_allclose(one, other, rtol=0, atol=self.tolerance)

    def specs(self, stages: int = 1, slots: int = SLOTS) -> list[StageSpec]:
        """The model cut into stages."""
        bounds = [self.facts.layers * index // stages for index in range(stages + 1)]
        epoch = Epoch(HeadId(bytes(16)), 1)
        return [
            StageSpec(
                model=self.facts,
                epoch=epoch,
                index=index,
                stages=stages,
                layers=LayerRange(bounds[index], bounds[index + 1]),
                slots=slots,
                context=CONTEXT,
                threads=1,
                max_step_tokens=STEP_TOKENS,
                precision_in=self.precision if index else Precision.RAW,
                precision_out=self.precision if index < stages - 1 else Precision.RAW,
            )
            for index in range(stages)
        ]

    @contextmanager
    def pipeline(self, stages: int = 1) -> Iterator[InProcessPipeline]:
        """The model's stages one after the other, closed at the end."""
        made = InProcessPipeline(self.facts, [self.make(spec) for spec in self.specs(max(stages, self.least_stages))])
        try:
            yield made
        finally:
            made.close()


class InProcessPipeline:
    """Stages without links: what one sends the next one receives."""

    def __init__(self, facts: ModelFacts, engines: Sequence[Engine]) -> None:
        self.facts = facts
        self.engines = engines

    def step(self, rows: Sequence[Row], tokens: Sequence[int]) -> Answers:
        """Run a frame through all stages; the answers are copies."""
        payload = np.asarray(tokens, "<i4").tobytes()
        for engine in self.engines:
            buffer = engine.input_buffer(rows)
            assert buffer.nbytes == len(payload), "the input buffer is not exactly as long as the payload"
            buffer[:] = payload
            payload = b"".join(engine.step(rows))
        assert len(payload) == candidates_bytes(rows, self.facts.vocab)
        return split(rows, payload, self.facts.vocab)

    def logits(self, slot: int, tokens: Sequence[int], start: int = 0) -> Floats:
        """The logits after the last of these tokens of a slot."""
        row = Row(slot, start, len(tokens), (len(tokens) - 1,), whole_logits=True)
        return _whole(self.step((row,), tokens)[0][0])

    def copy(self, source: int, destination: int, count: int) -> None:
        """Copy KV entries in all stages."""
        for engine in self.engines:
            engine.copy(source, destination, count)

    def close(self) -> None:
        """Close all engines, twice: that must be harmless."""
        for engine in [*self.engines, *self.engines]:
            engine.close()


def some_tokens(facts: ModelFacts, count: int, seed: int = 0) -> list[int]:
    """Tokens that are neither all alike nor in order."""
    return [int(token) for token in np.random.default_rng(seed).integers(0, facts.vocab, count)]


# --- what is computed ----------------------------------------------------------------------------------------------


def a_model_in_stages_computes_what_it_does_in_one(harness: EngineHarness) -> None:
    """Bit for bit, for a prompt and for decode steps after it."""
    results = []
    for stages in (1, 2, 3):
        with harness.pipeline(stages) as pipeline:
            logits = [pipeline.logits(1, _prompt(harness))]
            logits += [pipeline.logits(1, [token], PROMPT_TOKENS + token) for token in range(3)]
            results.append(np.stack(logits))
    for other in results[1:]:
        harness.same(results[0], other)


def a_prompt_gives_the_same_however_it_is_cut(harness: EngineHarness) -> None:
    """Bit for bit, where no piece is a single token, which an engine may compute as a decode step."""
    with harness.pipeline() as pipeline:
        whole = pipeline.logits(0, _prompt(harness))
        for cuts in ((8, 16), (5, 11), (2, 22), (3, 6, 9, 12, 15, 18, 21)):
            harness.same(whole, _in_pieces(pipeline, 1, _prompt(harness), cuts))
        long = some_tokens(harness.facts, CONTEXT - 6)
        whole = _in_pieces(pipeline, 0, long, (STEP_TOKENS,))
        for ends in ((7, 14, 21, 40, 64, 66, 80), (2, 30, 62, 64, 70, 88), (33, 64)):
            harness.same(whole, _in_pieces(pipeline, 1, long, ends))


def a_row_does_not_depend_on_the_rows_beside_it(harness: EngineHarness) -> None:
    """Bit for bit: alone, with neighbours, with a gap between the slots, beside a prompt, and in another order."""
    with harness.pipeline() as pipeline:
        prompts = [some_tokens(harness.facts, 3 + 4 * slot, slot) for slot in range(SLOTS)]
        for slot, prompt in enumerate(prompts):
            pipeline.logits(slot, prompt)
        alone = [pipeline.logits(slot, [slot + 1], len(prompt)) for slot, prompt in enumerate(prompts)]
        for slots in ((0, 1, 2, 3, 4, 5), (1, 2), (0, 5), (4, 0, 2), (5, 4, 3)):
            rows = [Row(slot, len(prompts[slot]), 1, (0,), whole_logits=True) for slot in slots]
            for slot, answer in zip(slots, pipeline.step(rows, [slot + 1 for slot in slots]), strict=True):
                harness.same(alone[slot], _whole(answer[0]))
        mixed = (Row(2, 11, 1, (0,), whole_logits=True), Row(5, 0, 23), Row(0, 3, 1, (0,), whole_logits=True))
        answers = pipeline.step(mixed, [3, *prompts[5], 1])
        harness.same(alone[2], _whole(answers[0][0]))
        harness.same(alone[0], _whole(answers[2][0]))


def tokens_that_are_taken_one_by_one_are_decode_steps(harness: EngineHarness) -> None:
    """Bit for bit, whatever their number, in several frames and beside other rows; each of them may be wanted."""
    with harness.pipeline(2) as pipeline:
        prompt, answer = _prompt(harness), some_tokens(harness.facts, 34, seed=11)
        beside = some_tokens(harness.facts, 5, seed=12)
        pipeline.logits(0, prompt)
        steps = [pipeline.logits(0, [token], PROMPT_TOKENS + n) for n, token in enumerate(answer)]
        other = pipeline.logits(4, beside)
        pipeline.logits(5, prompt[:6])
        single = pipeline.logits(5, prompt[6:7], 6)
        for counts in ((16, 16), (2, 3, 7, 20), (33,)):
            pipeline.logits(1, prompt)
            done = 0
            for count in counts:
                rows = (
                    Row(5, 6, 1, (0,), whole_logits=True),
                    Row(1, PROMPT_TOKENS + done, count, (0, count - 1), whole_logits=True, one_by_one=True),
                    Row(4, 0, 5, (4,), whole_logits=True),
                )
                answers = pipeline.step(rows, [prompt[6], *answer[done : done + count], *beside])
                expected = [single, steps[done], steps[done + count - 1], other]
                for clean, found in zip(expected, [*answers[0], *answers[1], *answers[2]], strict=True):
                    harness.same(clean, _whole(found))
                done += count
            harness.same(steps[done], pipeline.logits(1, answer[done : done + 1], PROMPT_TOKENS + done))
        _leaves_what_lies_behind(harness, pipeline)


def _leaves_what_lies_behind(harness: EngineHarness, pipeline: InProcessPipeline) -> None:
    """Tokens in the middle of a slot, and those up to its end, change no other entry."""
    full = some_tokens(harness.facts, CONTEXT - 1, seed=5)
    _fill(pipeline, 2, full)
    _fill(pipeline, 3, full)
    for tokens, start in ((full[40:43], 40), (full[-9:], len(full) - 9)):
        pipeline.step((Row(2, start, len(tokens), one_by_one=True),), tokens)
        for position, token in enumerate(tokens, start):
            pipeline.step((Row(3, position, 1),), [token])
    harness.same(pipeline.logits(3, [1], len(full)), pipeline.logits(2, [1], len(full)))
    pipeline.step((Row(2, len(full) - 11, 12, one_by_one=True),), [*full[-11:], 1])
    for position, token in enumerate([*full[-11:], 1], len(full) - 11):
        pipeline.step((Row(3, position, 1),), [token])
    harness.same(pipeline.logits(3, [2], len(full)), pipeline.logits(2, [2], len(full)))


def an_earlier_start_overwrites_exactly(harness: EngineHarness) -> None:
    """Rollback: what was computed after the new start leaves no trace."""
    with harness.pipeline() as pipeline:
        prompt = _prompt(harness)
        clean = pipeline.logits(0, prompt)
        pipeline.logits(1, some_tokens(harness.facts, 40, seed=9))
        pipeline.logits(1, prompt[:10])
        pipeline.logits(1, some_tokens(harness.facts, 8, seed=10), 10)
        harness.same(clean, pipeline.logits(1, prompt[10:], 10))


def a_copied_slot_goes_on_as_its_source(harness: EngineHarness) -> None:
    """And the source is as it was."""
    with harness.pipeline(2) as pipeline:
        prompt = _prompt(harness)
        pipeline.logits(0, prompt)
        pipeline.copy(0, 3, 10)
        clean = pipeline.logits(0, prompt[10:], 10)
        harness.same(clean, pipeline.logits(3, prompt[10:], 10))


def slots_that_are_not_named_keep_what_they_hold(harness: EngineHarness) -> None:
    """Also where a batch of others is padded with them, full slots included."""
    with harness.pipeline() as pipeline:
        prompt = _prompt(harness)
        full = some_tokens(harness.facts, CONTEXT - 1, seed=5)
        _fill(pipeline, 1, full)
        _fill(pipeline, 3, prompt)
        for slot in (0, 2, 4):
            pipeline.logits(slot, prompt[:6])
        for position in range(6, 10):
            rows = [Row(slot, position, 1, (0,)) for slot in (0, 2, 4)]
            pipeline.step(rows, [7, 8, 9])
        expected = [pipeline.logits(5, prompt), pipeline.logits(5, [1], len(prompt))]
        harness.same(expected[1], pipeline.logits(3, [1], len(prompt)))
        after = pipeline.logits(1, [1], CONTEXT - 1)
        _fill(pipeline, 5, full)
        harness.same(after, pipeline.logits(5, [1], CONTEXT - 1))


# --- what is answered ----------------------------------------------------------------------------------------------


def candidates_are_the_largest_logits(harness: EngineHarness) -> None:
    """Ids, logits, both log-sum-exps and the extra logits agree with the whole logits of the same position."""
    with harness.pipeline(2) as pipeline:
        prompt = _prompt(harness)
        logits = pipeline.logits(0, prompt).astype(np.float64)
        extra = (0, harness.facts.vocab - 1, 5)
        row = Row(0, 20, 4, (3,), top_k=CANDIDATES_K, extra_ids=extra, temperature=0.7)
        found = pipeline.step((row,), prompt[20:])[0][0]
        assert isinstance(found, Candidates)
        assert len(set(found.ids)) == CANDIDATES_K
        harness.same(found.logits, np.sort(logits)[::-1][:CANDIDATES_K])
        harness.same(found.logits, logits[list(found.ids)])
        harness.same(found.extra, logits[list(extra)])
        np.testing.assert_allclose(found.lse, _log_sum_exp(logits), atol=2e-4 + harness.tolerance)
        np.testing.assert_allclose(found.lse_t, _log_sum_exp(logits / 0.7), atol=2e-4 + harness.tolerance / 0.7)


def every_wanted_position_is_answered_in_order(harness: EngineHarness) -> None:
    """Rows in frame order, offsets in row order, each row with its own K, extra ids and temperature."""
    with harness.pipeline() as pipeline:
        prompt = _prompt(harness)
        singles = [pipeline.logits(4, prompt[: end + 1]) for end in (1, 4, 5, 23)]
        pipeline.logits(3, prompt[:-1])
        last = pipeline.logits(3, prompt[-1:], PROMPT_TOKENS - 1)
        rows = (
            Row(3, PROMPT_TOKENS - 1, 1, (0,), top_k=3, extra_ids=(1, 2), temperature=2.0),
            Row(1, 0, PROMPT_TOKENS, (1, 4, 5, 23), top_k=7),
            Row(0, 0, 2),
        )
        answers = pipeline.step(rows, [prompt[-1], *prompt, 1, 2])
        assert [len(answer) for answer in answers] == [1, 4, 0]
        for single, found in zip([last, *singles], [*answers[0], *answers[1]], strict=True):
            assert isinstance(found, Candidates)
            harness.same(found.logits, np.sort(single)[::-1][: len(found.logits)])


def many_wanted_positions_are_answered(harness: EngineHarness) -> None:
    """As many as a frame has tokens."""
    with harness.pipeline() as pipeline:
        tokens = some_tokens(harness.facts, STEP_TOKENS, seed=3)
        row = Row(0, 0, STEP_TOKENS, tuple(range(STEP_TOKENS)), top_k=1)
        found = pipeline.step((row,), tokens)[0]
        for end in (2, 31, 32, 33, 47, STEP_TOKENS):
            one = found[end - 1]
            assert isinstance(one, Candidates)
            harness.same(one.logits, np.sort(pipeline.logits(1, tokens[:end]))[-1:])


def a_frame_in_which_nothing_is_wanted_has_an_empty_answer(harness: EngineHarness) -> None:
    """And its KV entries are written all the same."""
    with harness.pipeline(2) as pipeline:
        prompt = _prompt(harness)
        clean = pipeline.logits(0, prompt)
        assert pipeline.step((Row(1, 0, 20), Row(2, 0, 1)), [*prompt[:20], 1]) == [[], []]
        harness.same(clean, pipeline.logits(1, prompt[20:], 20))


def a_bank_leaves_the_other_one_alone(harness: EngineHarness) -> None:
    """The next frame comes in before a step, the last one goes out after it; bit for bit the same, ragged rows too."""
    with harness.pipeline(2) as plain, harness.pipeline(2) as banked:
        banks_change_nothing(plain.engines, banked.engines, _prompt(harness))


# --- what is refused -----------------------------------------------------------------------------------------------


def rows_beyond_the_limits_are_refused(harness: EngineHarness) -> None:
    """ProtocolError for a slot, a position or a number of tokens that the stage has no room for; it works on."""
    refused = (
        (Row(SLOTS, 0, 1, (0,)),),
        (Row(0, 0, STEP_TOKENS + 1),),
        (Row(0, 0, 40), Row(1, 0, 40)),
        (Row(0, CONTEXT, 1, (0,)),),
    )
    with harness.pipeline() as pipeline:
        clean = pipeline.logits(0, _prompt(harness))
        for rows in refused:
            try:
                pipeline.engines[0].input_buffer(rows)
            except ProtocolError:
                continue
            raise AssertionError(f"{rows} were not refused")
        harness.same(clean, pipeline.logits(0, _prompt(harness)))


def memory_is_counted(harness: EngineHarness) -> None:
    """More slots take more bytes."""
    counts = []
    for slots in (1, SLOTS):
        engine = harness.make(harness.specs(slots=slots)[0])
        counts.append(engine.private_bytes)
        engine.close()
    assert 0 < counts[0] < counts[1]


ENGINE_CHECKS: tuple[Callable[[EngineHarness], None], ...] = (
    a_model_in_stages_computes_what_it_does_in_one,
    a_prompt_gives_the_same_however_it_is_cut,
    a_row_does_not_depend_on_the_rows_beside_it,
    tokens_that_are_taken_one_by_one_are_decode_steps,
    an_earlier_start_overwrites_exactly,
    a_copied_slot_goes_on_as_its_source,
    slots_that_are_not_named_keep_what_they_hold,
    candidates_are_the_largest_logits,
    every_wanted_position_is_answered_in_order,
    many_wanted_positions_are_answered,
    a_frame_in_which_nothing_is_wanted_has_an_empty_answer,
    a_bank_leaves_the_other_one_alone,
    rows_beyond_the_limits_are_refused,
    memory_is_counted,
)


def _prompt(harness: EngineHarness) -> list[int]:
    return some_tokens(harness.facts, PROMPT_TOKENS)


def _in_pieces(pipeline: InProcessPipeline, slot: int, tokens: Sequence[int], cuts: Sequence[int]) -> Floats:
    bounds = [0, *cuts, len(tokens)]
    for start, end in pairwise(bounds[:-1]):
        pipeline.step((Row(slot, start, end - start),), tokens[start:end])
    return pipeline.logits(slot, tokens[bounds[-2] :], bounds[-2])


def _fill(pipeline: InProcessPipeline, slot: int, tokens: Sequence[int]) -> None:
    for start in range(0, len(tokens), STEP_TOKENS):
        part = tokens[start : start + STEP_TOKENS]
        pipeline.step((Row(slot, start, len(part)),), part)


def _whole(answer: Candidates | Floats) -> Floats:
    assert not isinstance(answer, Candidates)
    return answer.copy()


def _log_sum_exp(logits: npt.NDArray[np.float64]) -> float:
    top = logits.max()
    return float(top + np.log(np.exp(logits - top).sum()))
