"""Which candidates a short training lets through."""

import pytest

from kdgan_compress.experiment.halving import Scored, survivors

CANDIDATES = [Scored("1", 0.80, 10), Scored("2", 0.92, 20), Scored("4", 0.935, 40), Scored("8", 0.94, 80)]


@pytest.mark.parametrize(
    ("drop", "expected"),
    [
        (0.01, ["4", "2", "8", "1"]),  # the smallest within the drop, and smaller ones that miss it by least, in turns
        (0.02, ["2", "1", "4", "8"]),
        (0.5, ["1", "2", "4", "8"]),
        (0.0, ["8", "4", "2", "1"]),
        (None, ["8", "4", "2", "1"]),
    ],
)
@pytest.mark.parametrize(("fraction", "number"), [(1, 4), (0.51, 3), (0.1, 2)])
def test_candidates_on_both_sides_of_the_drop_come_first(drop, expected, fraction, number):
    assert survivors(CANDIDATES, fraction, drop, teacher_auc=1) == expected[:number]


def test_drops_are_those_from_the_teacher_where_a_candidate_is_better():
    assert survivors(CANDIDATES, 1, 0.01, teacher_auc=0.93) == ["2", "1", "4", "8"]
    assert survivors(CANDIDATES, 1, 0.01, teacher_auc=0.90) == ["2", "1", "4", "8"]
    assert survivors(CANDIDATES, 1, 0.01, teacher_auc=0.94) == ["4", "2", "8", "1"]


def test_a_larger_candidate_that_misses_the_drop_comes_last():
    assert survivors([*CANDIDATES, Scored("9", 0.6, 90), Scored("0", 0.7, 5)], 1, 0.01, 1) == list("428109")


def test_equal_candidates_are_ordered_by_bytes():
    assert survivors([Scored("b", 0.9, 2), Scored("a", 0.9, 1)], 1, None, 1) == ["a", "b"]


def test_one_candidate_survives():
    assert survivors([Scored("a", 0.9, 1)], 0.1, 0.01, 1) == ["a"]


def test_the_best_file_of_a_candidate_counts():
    small = [Scored("2", 0.935, 9), Scored("1", 0.5, 1), Scored("8", 0.93, 30)]  # a smaller file of two candidates
    assert survivors([*CANDIDATES, *small], 1, 0.01, 1) == ["2", "1", "8", "4"]
