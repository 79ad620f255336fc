"""The layout of what the last stage returns."""

import numpy as np
import pytest

from hyperlane.core import Row
from hyperlane.errors import ProtocolError
from hyperlane.wire.candidates import Candidates, candidate_block, candidates_bytes, join, split

VOCAB = 50


def candidates(seed, top_k, extra):
    random = np.random.default_rng(seed)
    return Candidates(
        random.permutation(VOCAB)[:top_k].tolist(),
        np.sort(random.standard_normal(top_k).astype(np.float32))[::-1].tolist(),
        float(np.float32(random.standard_normal())),
        float(np.float32(random.standard_normal())),
        random.standard_normal(extra).astype(np.float32).tolist(),
    )


def same(a, b):
    return (
        a.lse == b.lse
        and a.lse_t == b.lse_t
        and np.array_equal(a.ids, b.ids)
        and np.array_equal(a.logits, b.logits)
        and np.array_equal(a.extra, b.extra)
    )


def test_ragged_answers_are_split_as_they_were_joined():
    rows = (Row(0, 0, 5, (1, 4), 8, (3, 4, 5)), Row(1, 0, 3), Row(2, 9, 1, (0,), 4))
    answers = [[candidates(1, 8, 3), candidates(2, 8, 3)], [], [candidates(3, 4, 0)]]
    payload = join(answers)
    assert len(payload) == candidates_bytes(rows, VOCAB) == 4 * (2 * (2 + 16 + 3) + 2 + 8)
    got = split(rows, payload, VOCAB)
    assert [len(row) for row in got] == [2, 0, 1]
    for row, expected in zip(got, answers, strict=True):
        for one, other in zip(row, expected, strict=True):
            assert same(one, other)


def test_whole_logits_are_split_by_position():
    rows = (Row(0, 0, 2, (0, 1), whole_logits=True), Row(1, 0, 1, (0,), whole_logits=True))
    logits = np.arange(3 * VOCAB, dtype=np.float32).reshape(3, VOCAB)
    payload = join([[logits[0], logits[1]], [logits[2]]])
    assert len(payload) == candidates_bytes(rows, VOCAB)
    got = split(rows, payload, VOCAB)
    assert np.array_equal(np.concatenate([got[0][0], got[0][1], got[1][0]]), logits.reshape(-1))


def test_nothing_wanted_is_an_empty_payload():
    rows = (Row(0, 0, 5), Row(1, 0, 5, whole_logits=True))
    assert candidates_bytes(rows, VOCAB) == 0
    assert split(rows, memoryview(b""), VOCAB) == [[], []]


@pytest.mark.parametrize("length", [0, 4, 4 * 18 - 4, 4 * 18 + 4])
def test_payload_of_another_length_is_refused(length):
    with pytest.raises(ProtocolError, match="bytes, where the rows make 72"):
        split((Row(0, 0, 1, (0,), 8),), bytes(length), VOCAB)


def test_block_views_write_into_the_payload():
    rows = (Row(0, 0, 2, (0, 1), 4, (7,)),)
    buffer = bytearray(candidates_bytes(rows, VOCAB))
    expected = [candidates(5, 4, 1), candidates(6, 4, 1)]
    block = candidate_block(memoryview(buffer), 2, 4, 1)
    for index, one in enumerate(expected):
        block.lse[index], block.lse_t[index] = one.lse, one.lse_t
        block.logits[index], block.ids[index], block.extra[index] = one.logits, one.ids, one.extra
    assert bytes(buffer) == join([expected])
    assert all(same(*pair) for pair in zip(split(rows, buffer, VOCAB)[0], expected, strict=True))


def test_whole_logits_are_views_into_the_payload():
    rows = (Row(0, 0, 1, (0,), whole_logits=True),)
    buffer = bytearray(join([[np.zeros(VOCAB, np.float32)]]))
    (one,) = split(rows, buffer, VOCAB)[0]
    buffer[8:12] = np.float32(99).tobytes()
    assert one[2] == 99
