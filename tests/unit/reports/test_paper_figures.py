"""The papers' figures belong to the papers' settings and to all ten classes."""

import numpy as np
import pytest

from kdgan_compress.reports.paper_figures import TEACHERS, TEACHERS_BY_CLASS, paper_auc, paper_auc_of_class

TEACHER = {"family": "ede", "structure": "–", "channels": "64-128-256"}


@pytest.mark.parametrize("data", ["mnist", "cifar10"])
def test_the_means_are_those_of_table_iv(data):
    assert np.mean(list(TEACHERS_BY_CLASS[data].values())) == pytest.approx(TEACHERS[data], abs=1e-4)
    assert paper_auc(TEACHER | {"data": data}, 10) == TEACHERS[data]


def test_other_settings_and_fewer_classes_have_none():
    settings = TEACHER | {"data": "mnist"}
    assert paper_auc(settings, 9) is None
    for change in ({"family": "ed"}, {"data": "sample"}, {"channels": "32-64-128"}, {"structure": "②→③"}):
        assert paper_auc(settings | change, 10) is None


def test_students_are_those_of_tables_v_and_vi():
    student = {"family": "ede", "channels": "2-4-8", "data": "mnist"}
    assert paper_auc(student | {"structure": "②→③"}, 10) == 0.9725
    assert paper_auc(student | {"structure": "–"}, 10) == pytest.approx(0.978 - 0.0232)
    assert paper_auc(student | {"structure": "①→②"}, 10) is None
    assert paper_auc(student | {"structure": "②→③", "data": "cifar10"}, 10) is None


def test_cvgad_has_figures_by_protocol():
    cvgad = {"family": "cvgad"}
    assert paper_auc(cvgad | {"data": "fashion-mnist, gpnd-5fold, 30 % outliers"}, 10) == 0.940
    assert paper_auc(cvgad | {"data": "fashion-mnist, gpnd-5fold, 30 % outliers"}, 2) is None
    assert paper_auc(cvgad | {"data": "coil100, 4 categories, 25 % outliers"}, 0) == 0.949
    assert paper_auc(cvgad | {"data": "mnist"}, 10) is None


@pytest.mark.parametrize(("name", "auc"), [("3", 0.605), ("cat", 0.605), ("10", None), ("cats", None)])
def test_a_class_is_known_by_name_and_number(name, auc):
    assert paper_auc_of_class(TEACHER | {"data": "cifar10"}, name) == auc
    assert paper_auc_of_class({"family": "ede", "structure": "②", "data": "cifar10"}, name) is None
