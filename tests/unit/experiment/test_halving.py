"""Which candidates a short training lets through."""

import pytest

from kdgan_compress.experiment.halving import Scored, survivors

CANDIDATES = [Scored("1", 0.80, 10), Scored("2", 0.92, 20), Scored("4", 0.935, 40), Scored("8", 0.94, 80)]


@pytest.mark.parametrize(
    ("drop", "expected"),
    [
        (0.01, ["4", "8", "2", "1"]),  # within the drop by bytes, then by what is missing
        (0.02, ["2", "4", "8", "1"]),
        (0.5, ["1", "2", "4", "8"]),
        (0.0, ["8", "4", "2", "1"]),
        (None, ["8", "4", "2", "1"]),
    ],
)
@pytest.mark.parametrize(("fraction", "number"), [(1, 4), (0.51, 3), (0.1, 2)])
def test_the_smallest_within_the_drop_come_first(drop, expected, fraction, number):
    assert survivors(CANDIDATES, fraction, drop) == expected[:number]


def test_equal_candidates_are_ordered_by_bytes():
    assert survivors([Scored("b", 0.9, 2), Scored("a", 0.9, 1)], 1, None) == ["a", "b"]


def test_one_candidate_survives():
    assert survivors([Scored("a", 0.9, 1)], 0.1, 0.01) == ["a"]
