"""The toy model: cuts, chunks and batches change nothing, a wrong slot or position changes everything."""

import numpy as np
import pytest

from hyperlane.core import Row
from hyperlane.errors import EngineFault, ProtocolError
from hyperlane.stage.engine import Engine
from hyperlane.testing.fake_engine import FakeCost, FakeEngine, FakeFaults, ToySequence, fake_generate
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs
from hyperlane.wire.candidates import split

FACTS = toy_facts()


def engines(stages: int, **kwargs) -> list[Engine]:
    return [FakeEngine(spec, **kwargs) for spec in toy_specs(toy_plan(FACTS, stages))]


def run(pipeline, rows, *tokens):
    """One frame through all stages; the tokens of its rows one after the other."""
    payload = [memoryview(np.array([t for row in tokens for t in row], "<i4")).cast("B")]
    for engine in pipeline:
        engine.input_buffer(rows)[:] = b"".join(payload)
        payload = engine.step(rows)
    return split(rows, b"".join(payload), FACTS.vocab)


def whole(slot, start, count, *want):
    return Row(slot, start, count, want or (count - 1,), whole_logits=True)


def test_any_cut_of_the_layers_gives_the_same_logits():
    prompt = list(b"the same prompt")
    toy = ToySequence(FACTS)
    expected = [toy.feed(token) for token in prompt][-1]
    for stages in (1, 2, 3, 4):
        ((logits,),) = run(engines(stages), [whole(1, 0, len(prompt))], prompt)
        assert np.array_equal(logits, expected)


def test_chunks_batches_rollback_and_copies_change_nothing():
    a, b = list(b"first sequence"), list(b"another")
    pipeline = engines(2)
    run(pipeline, [Row(0, 0, 6), Row(2, 0, 3)], a[:6], b[:3])
    run(pipeline, [Row(2, 3, 2), Row(0, 6, 5)], b"xx", a[6:11])
    one, two = run(pipeline, [whole(0, 11, 3), whole(2, 3, 4)], a[11:], b[3:])
    for tokens, (logits,) in ((a, one), (b, two)):
        toy = ToySequence(FACTS)
        assert np.array_equal(logits, [toy.feed(token) for token in tokens][-1])
    for engine in pipeline:
        engine.copy(2, 3, 6)
    ((copied,),) = run(pipeline, [whole(3, 6, 1)], b[6:])
    assert np.array_equal(copied, two[0])


def test_another_slot_position_or_token_changes_the_answer():
    tokens = list(b"abc")
    ((right,),) = run(engines(1), [whole(0, 0, 3)], tokens)
    pipeline = engines(1)
    run(pipeline, [Row(0, 0, 2)], tokens[:2])
    ((other_slot,),) = run(pipeline, [whole(1, 2, 1)], tokens[2:])
    ((shifted,),) = run(engines(1), [whole(0, 1, 3)], tokens)
    ((swapped,),) = run(engines(1), [whole(0, 0, 3)], b"bac")
    assert not any(np.array_equal(right, wrong) for wrong in (other_slot, shifted, swapped))


def test_candidates_are_the_largest_logits_and_their_sums():
    ((logits,),) = run(engines(1), [whole(0, 0, 3)], b"abc")
    row = Row(0, 0, 3, (2,), top_k=5, extra_ids=(7, 200), temperature=0.5)
    ((found,),) = run(engines(1), [row], b"abc")
    assert list(found.ids) == np.argsort(-logits)[:5].tolist()
    assert np.array_equal(found.logits, logits[list(found.ids)])
    assert np.array_equal(found.extra, logits[[7, 200]])
    assert found.lse == pytest.approx(np.log(np.exp(logits.astype(float)).sum()), abs=1e-5)
    assert found.lse_t == pytest.approx(np.log(np.exp(logits.astype(float) * 2).sum()), abs=1e-5)


def test_fake_generate_feeds_its_own_tokens():
    tokens = fake_generate(b"prompt", 5, FACTS)
    again = fake_generate([*b"prompt", *tokens[:2]], 3, FACTS)
    assert tokens[2:] == again


def test_a_programmed_cost_is_waited_for():
    waited = []
    (engine,) = engines(1, cost=FakeCost(1.0, 0.5, 0.25), wait=waited.append)
    run([engine], [Row(0, 0, 2), Row(1, 0, 1)], b"ab", b"c")
    assert waited == [1.0 + 2 * 0.5 + 3 * 0.25]


def test_programmed_faults_come_at_their_step():
    (engine,) = engines(1, faults=FakeFaults(raises_at=1))
    run([engine], [whole(0, 0, 1)], b"a")
    with pytest.raises(EngineFault):
        run([engine], [whole(0, 1, 1)], b"b")
    (engine,) = engines(1, faults=FakeFaults(nan_at=0))
    ((logits,),) = run([engine], [whole(0, 0, 1)], b"a")
    assert np.isnan(logits).all()


@pytest.mark.parametrize("row", [Row(4, 0, 1), Row(0, 512, 1), Row(0, 0, 200)])
def test_rows_beyond_the_arena_are_refused(row):
    (engine,) = engines(1)
    with pytest.raises(ProtocolError):
        engine.input_buffer([row])
