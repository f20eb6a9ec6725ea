"""The Pareto front by a plain loop, and the arrangement of entries in groups."""

import dataclasses
from operator import attrgetter

import numpy as np
import pytest
from entries import entry, report

from kdgan_compress.reports.results import pareto_front


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_no_other_entry_beats(seed):
    rng = np.random.default_rng(seed)
    entries = [entry(str(i), float(rng.integers(50, 60)) / 100, size_bytes=int(rng.integers(1, 12))) for i in range(25)]
    expected = {
        (a.size_bytes, a.auc.mean)
        for a in entries
        if not any(
            (b.size_bytes <= a.size_bytes and b.auc.mean > a.auc.mean)
            or (b.size_bytes < a.size_bytes and b.auc.mean >= a.auc.mean)
            for b in entries
        )
    }
    front = [(each.size_bytes, each.auc.mean) for each in front_of(entries, "size_bytes")]
    assert set(front) == expected
    assert front == sorted(front)
    assert len(front) == len(expected)


def front_of(entries, cost):
    return pareto_front(entries, attrgetter(cost), attrgetter("auc.mean"))


def test_unknown_costs_are_left_out_of_the_front():
    entries = [entry("a", 0.9, latency_us=None), entry("b", 0.8, latency_us=5.0)]
    assert front_of(entries, "latency_us") == entries[1:]
    assert front_of(entries, "size_bytes") == []


def test_models_come_before_baselines_and_data_sets_are_groups():
    entries = [
        entry("PCA", 0.7, is_baseline=True),
        entry("teacher", 0.9),
        entry("teacher", 0.8, data="cifar10"),
        entry("student", 0.85),
    ]
    groups = report(entries).groups
    assert [group.data for group in groups] == ["mnist", "cifar10"]
    assert [row.labels[0] for row in groups[0].rows] == ["teacher", "student", "PCA"]
    assert [row.is_baseline for row in groups[0].rows] == [False, False, True]


def test_columns_of_one_data_set_each_are_one_group():
    entries = [
        entry("teacher", 0.9, column="mnist"),
        entry("teacher", 0.8, column="cifar10", data="cifar10"),
        entry("student", 0.7, column="cifar10", data="cifar10"),
    ]
    (group,) = report(entries).groups
    assert group.data == "mnist, cifar10"
    assert [row.entries for row in group.rows] == [[entries[0], entries[1]], [None, entries[2]]]


@pytest.mark.parametrize(
    ("axes", "labels", "column", "name"),
    [
        (("training.batch_size", "model.family"), ("4", "ede"), "", "batch size 4, ede"),
        (("structure", "channels"), ("–", "2-4-8"), "mnist", "2-4-8"),
        (("structure",), ("②",), "width 8", "②, width 8"),
        (("structure",), ("–",), "", "model"),
    ],
)
def test_a_name_says_what_numbers_are_and_leaves_out_blanks(axes, labels, column, name):
    assert dataclasses.replace(entry("", 0.5, column=column), labels=labels, axes=axes).name == name
