import pytest

from hyperlane.core import Row
from hyperlane.stage.runs import MAX_WANTED, Batch, batches, pieces


def spans(row, run_tokens=64):
    return [(piece.offset, piece.offset + piece.count) for piece in pieces([row], run_tokens)]


def test_a_row_is_cut_at_multiples_counted_in_the_sequence():
    assert spans(Row(0, 0, 200)) == [(0, 64), (64, 128), (128, 192), (192, 200)]
    assert spans(Row(0, 60, 100)) == [(0, 4), (4, 68), (68, 100)]
    assert spans(Row(0, 64, 64)) == [(0, 64)]


def test_a_position_is_in_the_same_piece_from_its_multiple_on_however_frames_are_cut():
    def last_cut(start, count, position):
        return next(start + a for a, b in spans(Row(0, start, count)) if start + a <= position < start + b)

    for cut in range(2, 300):
        for position in (5, 63, 64, 65, 127, 128, 250, 299):
            start = cut if position >= cut else 0
            count = 301 - cut if position >= cut else cut
            assert last_cut(start, count, position) == max(start, position // 64 * 64)


def test_a_piece_of_one_token_has_a_stand_in_beside_it():
    runs = [(piece.count, piece.run) for piece in pieces([Row(0, 0, 129)], 64)]
    assert runs == [(64, 64), (64, 64), (1, 2)]


def test_no_piece_has_more_wanted_positions_than_fit():
    row = Row(0, 3, 500, tuple(range(0, 500, 2)))
    for start, end in spans(row, 128):
        assert sum(start <= offset < end for offset in row.want) <= MAX_WANTED


def test_rows_of_one_token_are_no_pieces_and_others_know_where_they_begin():
    rows = [Row(0, 5, 1), Row(1, 0, 10), Row(2, 5, 1), Row(3, 0, 4)]
    assert [(piece.row, piece.base) for piece in pieces(rows, 64)] == [(1, 1), (3, 12)]


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ([0, 1, 2], [Batch(0, 3, (0, 1, 2))]),
        ([5], [Batch(5, 1, (0,))]),
        ([3, 1, 0], [Batch(0, 4, (2, 1, 0))]),
        ([0, 3], [Batch(0, 4, (0, 1))]),
        ([0, 4], [Batch(0, 1, (0,)), Batch(4, 1, (1,))]),
        ([7, 0, 6], [Batch(0, 1, (1,)), Batch(6, 2, (2, 0))]),
        ([], []),
    ],
)
def test_one_token_rows_run_as_ranges_of_slots_with_small_gaps(slots, expected):
    rows = [Row(slot, 9, 1) for slot in slots]
    assert list(batches(rows)) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (2, [(0, 1, 1), (1, 1, 1)]),
        (5, [(0, 5, 8)]),
        (8, [(0, 8, 8)]),
        (19, [(0, 8, 8), (8, 8, 8), (16, 1, 1), (17, 1, 1), (18, 1, 1)]),
        (21, [(0, 8, 8), (8, 8, 8), (16, 5, 8)]),
    ],
)
def test_a_row_taken_one_by_one_shares_runs_where_that_is_less_work(count, expected):
    found = list(pieces([Row(0, 0, 1), Row(1, 70, count, one_by_one=True)], 64, singles=8))
    assert [(piece.offset, piece.count, piece.run) for piece in found] == expected
    assert all(piece.singly and (piece.row, piece.base) == (1, 1) for piece in found)


def test_a_row_taken_one_by_one_is_a_run_for_each_token_where_none_can_be_shared():
    found = list(pieces([Row(1, 70, 3, one_by_one=True)], 64))
    assert [(piece.offset, piece.count, piece.run) for piece in found] == [(0, 1, 1), (1, 1, 1), (2, 1, 1)]
