import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdgan_compress.data.protocols import held_out, simo
from kdgan_compress.errors import KdganError

labels = st.lists(st.integers(0, 4), max_size=30).map(lambda values: np.array(values, dtype=np.int64))


@settings(deadline=None, derandomize=True, database=None)
@given(y_train=labels, y_test=labels, normal=st.integers(0, 4))
def test_simo_trains_on_one_class_and_tests_on_all(y_train, y_test, normal):
    expected = [index for index, label in enumerate(y_train) if label == normal]
    if not expected:
        with pytest.raises(KdganError, match=f"must have training images; found none of class {normal}"):
            simo(y_train, y_test, normal)
        return
    train, is_novel = simo(y_train, y_test, normal)
    assert train.tolist() == expected
    assert is_novel.dtype == np.bool_
    assert is_novel.tolist() == [label != normal for label in y_test]


def test_missing_class_lists_those_there():
    with pytest.raises(KdganError, match="Classes with images are 1, 3, 12"):
        simo(np.array([3, 12, 1, 3]), np.array([7]), 7)


def test_small_sets_hold_out_every_tenth_normal_and_no_others_do():
    assert np.flatnonzero(held_out(50)).tolist() == [9, 19, 29, 39, 49]
    assert held_out(999).sum() == 99
    for num_train in (0, 1, 49, 1000, 5421):
        assert held_out(num_train).tolist() == [False] * num_train
