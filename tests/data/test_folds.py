"""Groups and folds, held against scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import data
from jaxnet.errors import ConfigError, DataError

sizes = st.integers(8, 60)
seeds = st.integers(0, 99)


def _drawn(n, seed, kinds):
    return np.random.default_rng(seed).integers(kinds, size=n)


@given(n=sizes, k=st.integers(2, 8), seed=seeds)
def test_each_sample_validates_once(n, k, seed):
    selection = pytest.importorskip("sklearn.model_selection")
    folds = data.kfold(n, k, seed=seed)
    for train, validation in folds:
        np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(n))
        assert train.dtype == validation.dtype == np.int64
    np.testing.assert_array_equal(np.sort(np.concatenate([fold for _, fold in folds])), np.arange(n))
    theirs = selection.KFold(k).split(np.zeros(n))
    assert [len(fold) for _, fold in folds] == [len(fold) for _, fold in theirs]


@given(n=st.integers(30, 90), k=st.integers(2, 5), seed=seeds)
def test_stratified_folds_hold_as_many_of_each_class_as_theirs(n, k, seed):
    selection = pytest.importorskip("sklearn.model_selection")
    classes = np.repeat(np.array(["ape", "bee", "cow"]), [n // 2, n // 3, n - n // 2 - n // 3])
    ours = data.kfold(n, k, seed=seed, stratify=classes)
    theirs = list(selection.StratifiedKFold(k).split(np.zeros(n), classes))
    for name in np.unique(classes):
        counts, wanted = ([int((classes[fold] == name).sum()) for _, fold in folds] for folds in (ours, theirs))
        assert max(counts) - min(counts) <= 1
        assert sorted(counts) == sorted(wanted)


@given(n=st.integers(40, 80), k=st.integers(2, 4), seed=seeds)
def test_no_group_is_in_two_folds_and_their_sizes_are_as_even_as_theirs(n, k, seed):
    selection = pytest.importorskip("sklearn.model_selection")
    groups = _drawn(n, seed, 8).astype(str)
    folds = data.kfold(n, k, seed=seed, groups=groups)
    for train, validation in folds:
        assert not set(groups[train]) & set(groups[validation])
        assert len(train) + len(validation) == n
    theirs = selection.GroupKFold(k).split(np.zeros(n), groups=groups)
    assert sorted(len(fold) for _, fold in folds) == sorted(len(fold) for _, fold in theirs)


@given(n=st.integers(30, 80), seed=seeds, stratified=st.booleans())
def test_a_split_cuts_no_group(n, seed, stratified):
    groups = _drawn(n, seed, 10)
    stratify = groups % 2 if stratified else None
    parts = data.split(n, seed=seed, groups=groups, stratify=stratify)
    assert [len(part) > 0 for part in parts] == [True] * 3
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert sum(len(set(groups[part])) for part in parts) == len(set(groups))
    largest = np.bincount(groups).max()
    assert all(abs(len(part) - n * share) <= largest for part, share in zip(parts, (0.7, 0.1, 0.2), strict=True))


def test_groups_are_placed_by_their_classes():
    """Twelve groups of ten: a rare class in three of them, which three folds must share."""
    groups = np.repeat(np.arange(12), 10)
    classes = np.where(np.isin(groups, [2, 5, 7]), 1, 0)
    for seed in range(5):
        folds = data.kfold(120, 3, seed=seed, groups=groups, stratify=classes)
        assert [int(classes[fold].sum()) for _, fold in folds] == [10, 10, 10]
        assert [len(fold) for _, fold in folds] == [40, 40, 40]
    orders = {tuple(fold) for seed in range(5) for _, fold in data.kfold(120, 3, seed=seed, groups=groups)}
    assert len(orders) > 5  # the seed decides


def test_a_number_gives_the_indices_that_arrays_are_split_by():
    x, classes = np.arange(50) * 2, np.arange(50) % 3
    for indices, part in zip(
        data.split(50, seed=4, stratify=classes), data.split(x, seed=4, stratify=classes), strict=True
    ):
        np.testing.assert_array_equal(x[indices], part)
    words = np.array(["a", "b", "c"])[classes]
    for a, b in zip(data.split(50, stratify=words.tolist()), data.split(50, stratify=classes), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ConfigError, "k must be an integer >= 2", lambda: data.kfold(10, 1)),
        (ConfigError, "samples must be an integer >= 1", lambda: data.kfold(0)),
        (ConfigError, "the number of samples must be an integer >= 1", lambda: data.split(0)),
        (DataError, "^kfold: 3 samples cannot fill 4 parts", lambda: data.kfold(3, 4)),
        (DataError, "^kfold: 2 groups cannot fill 5 parts", lambda: data.kfold(10, groups=[0, 1] * 5)),
        (DataError, r"^split: groups must have one group a sample, shape \(10,\), got \(9,\)", lambda: data.split(10, groups=[1] * 9)),
        (DataError, r"stratify must have one class a sample, shape \(10,\), got \(10, 1\)", lambda: data.split(10, stratify=np.ones((10, 1)))),
        (DataError, "groups must hold numbers or words, one kind without gaps", lambda: data.split(3, fractions=[1.0], groups=["a", None, "b"])),
        (DataError, "groups has a gap, nan at index 1; fill it", lambda: data.split(3, fractions=[1.0], groups=["a", np.nan, "b"])),
        (DataError, "stratify has a gap, nan at index 2; fill it", lambda: data.kfold(4, 2, stratify=np.array([0, 1, np.nan, np.nan]))),
    ],
)  # fmt: skip
def test_what_is_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()
