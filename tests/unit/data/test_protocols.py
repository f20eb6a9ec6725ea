import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdgan_compress.data.protocols import (
    IndexSplit,
    coil100,
    gpnd_5fold,
    holdout_mask,
    miso_8020,
    miso_leaky,
    ocgan_p1,
    simo,
)
from kdgan_compress.errors import KdganError

examples = settings(deadline=None, derandomize=True, database=None)
labels = st.lists(st.integers(0, 4), max_size=30).map(lambda values: np.array(values, dtype=np.int64))
seeds = st.integers(0, 2**40)
fractions = st.floats(0.02, 0.98)


def sized(fewest: int, most: int, *, classes: tuple[int, int] = (2, 6)):
    """Shuffled labels of several classes, each of at least ``fewest`` images."""
    sizes = st.lists(st.integers(fewest, most), min_size=classes[0], max_size=classes[1])
    whole = sizes.map(lambda nums: [3 * label + 1 for label, num in enumerate(nums) for _ in range(num)])
    return whole.flatmap(st.permutations).map(np.array)


def check_is_sound(split: IndexSplit, labels: np.ndarray, normal: set[int]) -> None:
    """What holds under every protocol, by loops over single images."""
    train, validation, test = (part.tolist() for part in (split.train, split.validation, split.test))
    for part in (split.train, split.validation, split.test):
        assert part.dtype == np.int64
        assert part.tolist() == sorted(set(part.tolist()))
    assert split.test_is_anomalous.dtype == np.bool_
    assert not set(train) & set(test)
    assert not set(train) & set(validation)
    assert not set(validation) & set(test)
    assert all(0 <= index < len(labels) for index in train + validation + test)
    assert all(int(labels[index]) in normal for index in train + validation)
    assert split.test_is_anomalous.tolist() == [int(labels[index]) not in normal for index in test]


def class_sizes(labels: np.ndarray, indices: np.ndarray) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for index in indices.tolist():
        sizes[int(labels[index])] = sizes.get(int(labels[index]), 0) + 1
    return sizes


def check_fraction(split: IndexSplit, outliers: float) -> None:
    """To within one image, and at least one of either kind."""
    num_novel, num_test = int(split.test_is_anomalous.sum()), len(split.test)
    assert 1 <= num_novel < num_test
    assert abs(num_novel - Fraction(outliers) * num_test) < 1


def even_shares(available: list[int], total: int) -> list[int]:
    """``total`` images dealt one by one to whichever has the fewest yet and some left; how many each gets, sorted."""
    shares = [0] * len(available)
    for _ in range(total):
        open_ones = [number for number, most in enumerate(available) if shares[number] < most]
        shares[min(open_ones, key=lambda number: shares[number])] += 1
    return sorted(shares)


@examples
@given(y_train=labels, y_test=labels, normal=st.integers(0, 4))
def test_simo_trains_on_one_class_and_tests_on_all(y_train, y_test, normal):
    pool = np.concatenate([y_train, y_test])
    expected = [index for index, label in enumerate(y_train) if label == normal]
    if not expected:
        with pytest.raises(KdganError, match=f"needs training images; found none of class {normal}"):
            simo(pool, len(y_train), normal)
        return
    split = simo(pool, len(y_train), normal)
    check_is_sound(split, pool, {normal})
    assert split.train.tolist() == expected
    assert split.validation.tolist() == []
    assert split.test.tolist() == list(range(len(y_train), len(pool)))
    assert split.test_is_anomalous.tolist() == [label != normal for label in y_test]


def test_missing_class_lists_those_there():
    with pytest.raises(KdganError, match="Classes with images are 1, 3, 12"):
        simo(np.array([3, 12, 1, 3, 7]), 4, 7)


@examples
@given(pool=sized(3, 14), seed=seeds)
def test_miso_trains_on_80_percent_of_every_normal_class(pool, seed):
    novel = int(pool[0])
    normal = set(pool.tolist()) - {novel}
    split = miso_8020(pool, novel, seed)
    check_is_sound(split, pool, normal)
    sizes, trained = class_sizes(pool, np.arange(len(pool))), class_sizes(pool, split.train)
    assert trained == {label: round(Fraction(4, 5) * sizes[label]) for label in normal}
    assert all(trained[label] < sizes[label] for label in normal)
    assert sorted(split.train.tolist() + split.test.tolist()) == list(range(len(pool)))
    assert int(split.test_is_anomalous.sum()) == sizes[novel]


@examples
@given(pool=sized(3, 14), seed=seeds)
def test_miso_is_one_permutation_of_each_class(pool, seed):
    """The draw itself, written as a loop."""
    generator = np.random.default_rng(seed)
    novel = int(pool[-1])
    train = []
    for label in sorted(set(pool.tolist())):
        images = generator.permutation([index for index, other in enumerate(pool) if other == label]).tolist()
        train += [] if label == novel else images[: round(Fraction(4, 5) * len(images))]
    assert miso_8020(pool, novel, seed).train.tolist() == sorted(train)


def test_leaky_miso_tests_on_images_that_were_trained_on():
    pool = np.arange(10_000) % 5
    clean, leaky = (draw(pool, 3, seed=2) for draw in (miso_8020, miso_leaky))
    assert leaky.train.tolist() == clean.train.tolist()
    tested, novel = leaky.test[~leaky.test_is_anomalous], leaky.test[leaky.test_is_anomalous]
    assert novel.tolist() == clean.test[clean.test_is_anomalous].tolist()
    assert class_sizes(pool, tested) == {0: 400, 1: 400, 2: 400, 4: 400}
    assert np.isin(tested, leaky.train).mean() == pytest.approx(0.8, abs=0.03)


def test_miso_cuts_a_class_alike_whichever_other_is_novel():
    pool = np.arange(90) % 3
    trained = [set(miso_8020(pool, novel, seed=1).train.tolist()) for novel in (0, 1)]
    assert {index for index in trained[0] if pool[index] == 2} == {index for index in trained[1] if pool[index] == 2}


@examples
@given(pool=sized(5, 16), outliers=fractions, trial=st.integers(0, 1000))
def test_gpnd_is_60_20_20_with_the_fraction_of_outliers(pool, outliers, trial):
    normal = int(pool[0])
    split = gpnd_5fold(pool, normal, outliers, trial)
    check_is_sound(split, pool, {normal})
    check_fraction(split, outliers)
    num_normal = int((pool == normal).sum())
    assert len(split.validation) in (num_normal // 5, -(-num_normal // 5))
    assert abs(len(split.train) - Fraction(3, 5) * num_normal) < 2

    tested = class_sizes(pool, split.test)
    num_tested = tested.pop(normal)
    num_novel = sum(tested.values())
    fold = num_normal - len(split.train) - len(split.validation)
    others = [int((pool == label).sum()) for label in set(pool.tolist()) - {normal}]
    available = [len(range(trial % 5, num, 5)) for num in others]
    novel_per_normal = Fraction(outliers) / (1 - Fraction(outliers))
    too_few = num_novel == sum(available)
    assert num_tested == fold or too_few
    rounded_novel = abs(num_novel - novel_per_normal * num_tested) < 1
    assert rounded_novel or (too_few and abs(num_tested - num_novel / novel_per_normal) < 1)
    assert sorted([*tested.values(), *[0] * (len(others) - len(tested))]) == even_shares(available, num_novel)


@examples
@given(pool=sized(5, 16), permutation=st.integers(0, 200))
def test_gpnds_five_trials_test_each_normal_image_once(pool, permutation):
    """With so few outliers that no normal image is left out."""
    normal = int(pool[0])
    splits = [gpnd_5fold(pool, normal, 0.01, 5 * permutation + fold) for fold in range(5)]
    images = [index for index, label in enumerate(pool) if label == normal]
    tested = [split.test[~split.test_is_anomalous].tolist() for split in splits]
    assert sorted(index for fold in tested for index in fold) == images
    assert max(map(len, tested)) - min(map(len, tested)) <= 1
    assert [split.validation.tolist() for split in splits] == tested[1:] + tested[:1]
    for split, fold in zip(splits, tested, strict=True):
        assert sorted(split.train.tolist() + split.validation.tolist() + fold) == images


def test_gpnd_at_fashion_mnists_size():
    pool = np.arange(70_000) % 10
    split = gpnd_5fold(pool, 7, 0.5, 0)
    assert (len(split.train), len(split.validation), len(split.test)) == (4200, 1400, 2800)
    sizes = class_sizes(pool, split.test)
    assert sizes.pop(7) == 1400
    assert sorted(sizes.values()) == [155] * 4 + [156] * 5
    smaller = gpnd_5fold(pool, 7, 0.1, 0)
    assert int(smaller.test_is_anomalous.sum()) == round(1400 / 9)
    assert set(smaller.test.tolist()) < set(split.test.tolist())


def test_gpnd_has_a_new_permutation_every_five_trials():
    pool = np.arange(1000) % 10
    tested = [set(gpnd_5fold(pool, 0, 0.5, trial).test.tolist()) for trial in range(10)]
    assert all(tested[trial] != tested[trial + 5] for trial in range(5))


def test_gpnd_subsamples_normals_where_outliers_are_few():
    pool = np.array([0] * 100 + [1] * 10)
    split = gpnd_5fold(pool, 0, 0.5, 3)
    assert class_sizes(pool, split.test) == {0: 2, 1: 2}


@examples
@given(pool=sized(4, 12, classes=(2, 9)), data=st.data(), seed=seeds)
def test_coil100_samples_categories_and_one_image_per_other_category(pool, data, seed):
    there = sorted(set(pool.tolist()))
    num_categories = data.draw(st.integers(1, len(there) - 1))
    num_test = data.draw(st.integers(1, 3))
    outliers = data.draw(fractions)
    exact = Fraction(outliers) / (1 - Fraction(outliers)) * num_categories * num_test
    if max(1, round(float(exact))) > len(there) - num_categories:
        with pytest.raises(KdganError, match=f"anomalous categories; found {len(there) - num_categories}"):
            coil100(pool, num_categories, outliers, seed, num_test)
        return
    split = coil100(pool, num_categories, outliers, seed, num_test)
    sizes, trained, tested = (class_sizes(pool, part) for part in (np.arange(len(pool)), split.train, split.test))
    normal = set(trained)
    assert len(normal) == num_categories
    check_is_sound(split, pool, normal)
    check_fraction(split, outliers)
    assert trained == {label: sizes[label] - num_test for label in normal}
    assert {label: tested[label] for label in normal} == dict.fromkeys(normal, num_test)
    assert {num for label, num in tested.items() if label not in normal} == {1}
    assert split.validation.tolist() == []


@pytest.mark.parametrize(("num_categories", "outliers", "num_novel"), [(1, 0.5, 2), (4, 0.25, 3), (7, 0.15, 2)])
def test_coil100_as_in_the_paper(num_categories, outliers, num_novel):
    pool = np.repeat(np.arange(100), 72)
    split = coil100(pool, num_categories, outliers, seed=0)
    assert len(split.train) == 70 * num_categories
    assert int((~split.test_is_anomalous).sum()) == 2 * num_categories
    assert int(split.test_is_anomalous.sum()) == num_novel


def test_coil100_draws_every_category_sometimes():
    pool = np.repeat(np.arange(5), 4)
    drawn = [coil100(pool, 1, 0.5, seed) for seed in range(60)]
    assert {int(pool[split.train[0]]) for split in drawn} == set(range(5))
    assert {int(pool[index]) for split in drawn for index in split.test[split.test_is_anomalous]} == set(range(5))
    assert {index for split in drawn for index in split.test.tolist()} == set(range(20))


@examples
@given(pool=sized(3, 20), seed=seeds)
def test_ocgan_tests_as_many_novel_images_as_normal_ones(pool, seed):
    normal = int(pool[0])
    split = ocgan_p1(pool, normal, seed)
    check_is_sound(split, pool, {normal})
    num_normal = int((pool == normal).sum())
    num_train = round(Fraction(4, 5) * num_normal)
    assert len(split.train) == num_train
    num_each = min(num_normal - num_train, len(pool) - num_normal)
    assert int(split.test_is_anomalous.sum()) == int((~split.test_is_anomalous).sum()) == num_each
    assert split.validation.tolist() == []


def test_ocgan_draws_from_all_other_classes_together():
    """A class of nine tenths of the novel images gives about nine tenths of those tested."""
    pool = np.array([0] * 5000 + [1] * 9000 + [2] * 1000)
    sizes = class_sizes(pool, ocgan_p1(pool, 0, seed=0).test)
    assert sizes[0] == 1000
    assert 860 <= sizes[1] <= 940


def test_ocgan_subsamples_normals_where_outliers_are_few():
    pool = np.array([0] * 100 + [1] * 3)
    assert class_sizes(pool, ocgan_p1(pool, 0, seed=0).test) == {0: 3, 1: 3}


DRAWN = {
    "miso-8020": lambda pool, seed: miso_8020(pool, 3, seed),
    "miso-leaky": lambda pool, seed: miso_leaky(pool, 3, seed),
    "gpnd-5fold": lambda pool, seed: gpnd_5fold(pool, 3, 0.3, seed),
    "coil100": lambda pool, seed: coil100(pool, 4, 0.25, seed),
    "ocgan-p1": lambda pool, seed: ocgan_p1(pool, 3, seed),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_a_seed_is_a_split(draw):
    pool = np.arange(500) % 10
    fingerprints = [draw(pool, seed).sha256 for seed in range(12)]
    assert len(set(fingerprints)) == 12
    assert [draw(pool.copy(), seed).sha256 for seed in range(12)] == fingerprints


@pytest.mark.parametrize(
    ("protocol", "beginning"),
    [
        ("miso-8020", "cf1932f96a8c622d"),
        ("gpnd-5fold", "ad22bf1d9af4fb16"),
        ("coil100", "ed356d8880ac5f72"),
        ("ocgan-p1", "d01b75c742570042"),
    ],
)
def test_splits_are_the_same_on_every_machine(protocol, beginning):
    """Recorded once: another NumPy or platform must draw the same images, or results are not comparable."""
    assert DRAWN[protocol](np.arange(500) % 10, 6).sha256[:16] == beginning


def test_fingerprint_is_of_lengths_and_little_endian_numbers():
    split = IndexSplit(np.array([1, 258]), np.array([], np.int64), np.array([0]), np.array([True]))
    numbers = [[1, 258], [], [0], [1]]
    content = b"".join(value.to_bytes(8, "little") for part in numbers for value in [len(part), *part])
    assert split.sha256 == hashlib.sha256(content).hexdigest()
    big_endian = (part.astype(">i8") for part in (split.train, split.validation, split.test))
    assert IndexSplit(*big_endian, split.test_is_anomalous).sha256 == split.sha256
    moved = IndexSplit(np.array([1]), np.array([258]), split.test, split.test_is_anomalous)
    assert moved.sha256 != split.sha256


POOL = np.array([0] * 10 + [1] * 10 + [2] * 2)
"""Class 2 is too small for any cut, and there is no class 3."""


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            lambda: miso_8020(POOL, 3, 0),
            "The novel class needs images; found none of class 3. Classes with images are 0, 1, 2",
        ),
        (lambda: miso_8020(POOL, 0, 0), "needs at least 3 images; found 2 of class 2"),
        (lambda: miso_8020(POOL[:10], 0, 0), "needs normal classes to train on; found only images of the novel"),
        (lambda: miso_8020(POOL, 2, -1), "The seed must be 0 or more; got -1"),
        (
            lambda: gpnd_5fold(POOL, 3, 0.5, 0),
            "needs training images; found none of class 3. Classes with images are 0, 1, 2",
        ),
        (lambda: gpnd_5fold(POOL, 2, 0.5, 0), "needs at least 5 images; found 2 of class 2"),
        (lambda: gpnd_5fold(POOL[:10], 0, 0.5, 0), "The test split needs outliers"),
        (lambda: gpnd_5fold(np.delete(POOL, range(10)), 1, 0.5, 4), "The test split needs outliers"),
        (lambda: gpnd_5fold(POOL, 0, 0.0, 0), "outliers must be between 0 and 1; got 0"),
        (lambda: gpnd_5fold(POOL, 0, 1.0, 0), "outliers must be between 0 and 1; got 1"),
        (lambda: gpnd_5fold(POOL, 0, float("nan"), 0), "outliers must be between 0 and 1; got nan"),
        (lambda: gpnd_5fold(POOL, 0, 0.5, -1), "The trial must be 0 or more; got -1"),
        (lambda: coil100(POOL, 1, 0.5, 0), "needs at least 3 images; found 2 of class 2"),
        (
            lambda: coil100(POOL[:20], 0, 0.5, 0),
            "one category must be normal and at least one anomalous; got 0 normal of 2",
        ),
        (
            lambda: coil100(POOL[:20], 2, 0.5, 0),
            "one category must be normal and at least one anomalous; got 2 normal of 2",
        ),
        (lambda: coil100(POOL[:20], 1, 0.5, 0), "outliers needs 2 anomalous categories; found 1"),
        (lambda: coil100(POOL[:20], 1, 0.5, 0, num_test=0), "needs test images; got 0"),
        (lambda: coil100(POOL[:20], 1, -0.5, 0), "outliers must be between 0 and 1; got -0.5"),
        (lambda: coil100(POOL[:20], 1, 0.3, -2), "The seed must be 0 or more; got -2"),
        (
            lambda: ocgan_p1(POOL, 3, 0),
            "needs training images; found none of class 3. Classes with images are 0, 1, 2",
        ),
        (lambda: ocgan_p1(POOL, 2, 0), "needs at least 3 images; found 2 of class 2"),
        (lambda: ocgan_p1(POOL[:10], 0, 0), "The test split needs outliers"),
        (lambda: ocgan_p1(POOL, 0, -1), "The seed must be 0 or more; got -1"),
    ],
)
def test_impossible_splits_are_refused(split, message):
    with pytest.raises(KdganError) as caught:
        split()
    assert message in str(caught.value)


def test_small_sets_hold_out_every_tenth_normal_and_no_others_do():
    assert np.flatnonzero(holdout_mask(50)).tolist() == [9, 19, 29, 39, 49]
    assert holdout_mask(999).sum() == 99
    for num_train in (0, 1, 49, 1000, 5421):
        assert holdout_mask(num_train).tolist() == [False] * num_train
