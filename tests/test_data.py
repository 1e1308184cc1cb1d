"""split and batches: nothing twice, nothing lost, the order a function of the seed."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import data


@st.composite
def fractions(draw):
    """One to five shares that sum to 1, some of them 0."""
    whole = draw(st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(any))
    shares = [part / sum(whole) for part in whole]
    shares[int(np.argmax(shares))] += 1 - sum(shares)
    return shares


def _largest_remainder(n, shares):
    """The sizes by the textbook, for parts that are all worth at least one sample; ties go to the earlier part."""
    exact = [n * share for share in shares]
    sizes = [int(np.floor(x + 1e-9)) for x in exact]
    order = sorted(range(len(shares)), key=lambda i: -(exact[i] - sizes[i]))
    for i in order[: n - sum(sizes)]:
        sizes[i] += 1
    return sizes


def _samples(n):
    """Two arrays of n samples that name their sample in every entry, and a third of another dtype."""
    index = np.arange(n, dtype=np.int32)
    return index, np.stack([index, -index], 1).astype(np.float32), index.astype(np.uint8)


def _all_of(parts):
    return np.concatenate([np.asarray(part) for part in parts])


@given(n=st.integers(1, 400), shares=fractions(), seed=st.integers(0, 2**64 - 1), stratified=st.booleans())
def test_a_split_loses_no_sample_and_takes_none_twice(n, shares, seed, stratified):
    wanted = sum(share > 0 for share in shares)
    n = max(n, wanted)
    index, pairs, narrow = _samples(n)
    classes = np.random.default_rng(seed).integers(3, size=n) if stratified else None
    parts = data.split(index, pairs, narrow, fractions=shares, seed=seed, stratify=classes)
    assert len(parts) == len(shares)
    np.testing.assert_array_equal(np.sort(_all_of([part[0] for part in parts])), index)
    for share, (i, pair, small) in zip(shares, parts, strict=True):
        np.testing.assert_array_equal(pair, np.stack([i, -i], 1))
        np.testing.assert_array_equal(small, i.astype(np.uint8))
        assert (pair.dtype, small.dtype) == (np.float32, np.uint8)
        assert (len(i) > 0) == (share > 0)


@given(n=st.integers(1, 1000), shares=fractions())
def test_sizes_are_rounded_by_largest_remainder(n, shares):
    n = max(n, int(np.ceil(1 / min(share for share in shares if share))))  # each part is worth a sample
    sizes = [len(part) for part in data.split(np.arange(n), fractions=shares)]
    assert sum(sizes) == n
    assert all(abs(size - n * share) < 1 for size, share in zip(sizes, shares, strict=True))
    assert sizes == _largest_remainder(n, shares)


@pytest.mark.parametrize(
    ("n", "shares", "sizes"),
    [
        (100, (0.7, 0.1, 0.2), [70, 10, 20]),
        (10, (0.7, 0.1, 0.2), [7, 1, 2]),
        (1797, (0.7, 0.1, 0.2), [1258, 180, 359]),
        (3, (0.7, 0.1, 0.2), [1, 1, 1]),
        (4, (0.7, 0.1, 0.2), [2, 1, 1]),
        (10, (0.99, 0.01, 0.0), [9, 1, 0]),
        (5, (1.0,), [5]),
        (7, (0.5, 0.5), [4, 3]),
        (1, (0.0, 1.0), [0, 1]),
    ],
)
def test_sizes_by_hand(n, shares, sizes):
    assert [len(part) for part in data.split(np.arange(n), fractions=shares)] == sizes
    assert [len(part) for part in data.split(np.arange(n), fractions=shares, stratify=np.arange(n) % 2)] == sizes


def test_one_array_gives_arrays_and_several_give_tuples():
    (one,) = data.split(np.arange(4), fractions=[1.0])
    assert isinstance(one, np.ndarray)
    ((a, b),) = data.split(np.arange(4), jnp.arange(4.0), fractions=[1.0])
    assert isinstance(a, np.ndarray)
    assert isinstance(b, np.ndarray)
    (rows,) = data.split([[1, 2], [3, 4], [5, 6]], fractions=[1.0])
    assert sorted(rows[:, 0]) == [1, 3, 5]


def test_a_split_keeps_float64_and_warns_of_nothing():
    train, *_ = data.split(np.linspace(0, 1, 50))
    assert train.dtype == np.float64


def test_the_seed_decides_the_split():
    first = data.split(np.arange(50), seed=3)
    for a, b in zip(first, data.split(np.arange(50), seed=3), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], data.split(np.arange(50), seed=4)[0])
    assert not np.array_equal(first[0], np.arange(35))
    np.testing.assert_array_equal(data.split(np.arange(50))[0], data.split(np.arange(50), seed=0)[0])


def test_order_is_the_same_with_every_version_of_jax():
    assert [part.tolist() for part in data.split(np.arange(10), seed=1)] == [[6, 2, 1, 0, 8, 4, 3], [9], [7, 5]]
    assert [x.tolist() for x in data.batches(np.arange(6), batch_size=6, seed=1, epochs=2)] == [
        [5, 2, 0, 3, 4, 1],
        [5, 2, 1, 0, 3, 4],
    ]


def test_samples_are_spread_over_the_parts_evenly():
    # Each sample's chance to be tested is a fifth, wherever it stands: 400 seeds give 80 +- 8.
    tested = sum(np.bincount(data.split(np.arange(20), seed=seed)[2], minlength=20) for seed in range(400))
    assert tested.min() > 80 - 5 * 8
    assert tested.max() < 80 + 5 * 8


@st.composite
def class_sizes(draw):
    few = st.lists(st.integers(1, 60), min_size=1, max_size=8)
    rare = st.tuples(st.integers(100, 400), st.integers(1, 60)).map(lambda t: [t[0], *[1] * t[1]])
    return draw(few | rare)


@given(sizes=class_sizes(), shares=fractions(), seed=st.integers(0, 99))
def test_stratified_parts_hold_each_class_to_within_one_sample(sizes, shares, seed):
    smallest = min(share for share in shares if share)
    sizes = [size * int(np.ceil(1 / (smallest * sum(sizes)))) for size in sizes]  # each part is worth a sample
    classes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    n = len(classes)
    parts = data.split(np.arange(n), fractions=shares, seed=seed, stratify=classes)
    assert [len(part) for part in parts] == _largest_remainder(n, shares)
    np.testing.assert_array_equal(np.sort(_all_of(parts)), np.arange(n))
    for part, share in zip(parts, shares, strict=True):
        counts = np.bincount(classes[part], minlength=len(sizes))
        assert np.abs(counts - share * np.array(sizes)).max() <= 1 + 1e-6


def test_stratified_parts_are_shuffled_and_seeded():
    classes = np.repeat([0, 1], 50)
    train, *_ = data.split(np.arange(100), stratify=classes, seed=1)
    assert np.sum(np.diff(classes[train]) != 0) > 10  # classes alternate: they are not in blocks
    np.testing.assert_array_equal(train, data.split(np.arange(100), stratify=classes, seed=1)[0])
    assert not np.array_equal(train, data.split(np.arange(100), stratify=classes, seed=2)[0])
    in_train = sum(np.isin(np.arange(100), data.split(np.arange(100), stratify=classes, seed=s)[0]) for s in range(50))
    assert in_train.min() > 15  # 35 +- 3: no sample is always left out
    assert in_train.max() < 50


def _epochs(n, seed, epochs, batch_size=None, **options):
    """The orders of the epochs, by the samples' numbers."""
    found = list(data.batches(np.arange(n), batch_size=batch_size or n, seed=seed, epochs=epochs, **options))
    steps = len(found) // epochs
    return [np.concatenate(found[i * steps : (i + 1) * steps]) for i in range(epochs)]


@given(
    n=st.integers(1, 100),
    batch_size=st.integers(1, 120),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**64 - 1),
    shuffle=st.booleans(),
)
def test_every_sample_comes_once_an_epoch(n, batch_size, epochs, seed, shuffle):
    index, pairs, narrow = _samples(n)
    found = list(data.batches(index, pairs, narrow, batch_size=batch_size, seed=seed, epochs=epochs, shuffle=shuffle))
    full, rest = divmod(n, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0)
    assert [len(i) for i, *_ in found] == sizes * epochs
    for i, pair, small in found:
        np.testing.assert_array_equal(pair, np.stack([i, -i], 1))
        np.testing.assert_array_equal(small, i.astype(np.uint8))
    for epoch in range(epochs):
        order = np.concatenate([i for i, *_ in found[epoch * len(sizes) : (epoch + 1) * len(sizes)]])
        np.testing.assert_array_equal(np.sort(order), index)
        if not shuffle:
            np.testing.assert_array_equal(order, index)


@given(n=st.integers(1, 60), batch_size=st.integers(1, 60), epochs=st.integers(1, 3))
def test_drop_last_drops_what_is_not_a_whole_batch(n, batch_size, epochs):
    batch_size = min(batch_size, n)
    found = list(data.batches(np.arange(n), batch_size=batch_size, epochs=epochs, drop_last=True))
    assert [len(x) for x in found] == [batch_size] * (n // batch_size) * epochs
    for epoch in np.array_split(np.array(found), epochs):
        assert len(set(epoch.ravel())) == epoch.size  # none twice
    whole = data.batches(np.arange(n), batch_size=batch_size, epochs=epochs)
    for kept, dropped in zip((x for x in whole if len(x) == batch_size), found, strict=True):
        np.testing.assert_array_equal(kept, dropped)


def test_the_order_depends_on_seed_and_epoch_alone():
    first, second, third = _epochs(50, seed=7, epochs=3)
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)
    assert not np.array_equal(first, np.arange(50))
    np.testing.assert_array_equal(_epochs(50, seed=7, epochs=1)[0], first)  # however many follow
    for batch_size in (7, 50):  # however they are cut
        for order, expected in zip(_epochs(50, 7, 3, batch_size=batch_size), (first, second, third), strict=True):
            np.testing.assert_array_equal(order, expected)
    assert not np.array_equal(_epochs(50, seed=8, epochs=1)[0], first)
    with_more = list(data.batches(np.arange(50), np.ones(50, np.float32), batch_size=50, seed=7))
    np.testing.assert_array_equal(with_more[0][0], first)


def test_iterators_do_not_disturb_each_other():
    a, b = (data.batches(np.arange(9), batch_size=2, seed=5, epochs=2) for _ in range(2))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_seeds_epochs_and_splits_do_not_share_their_orders():
    # A seed sequence pads with zeros and cuts seeds into words of 32 bits: (5, 0) must not be 5, nor 5 + 2**32 (5, 1).
    orders = [
        *_epochs(40, seed=5, epochs=3),
        *_epochs(40, seed=5 + 2**32, epochs=2),
        data.split(np.arange(40), fractions=[1.0], seed=5)[0],
        data.split(np.arange(40), fractions=[1.0], seed=5 + 2**32)[0],
    ]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_replacement_draws_each_sample_independently():
    counts = np.zeros(20)
    repeats = 0
    for order in _epochs(20, seed=0, epochs=500, batch_size=6, replacement=True):
        assert len(order) == 20
        counts += np.bincount(order, minlength=20)
        repeats += len(order) - len(set(order))
    assert abs(repeats / 500 / 20 - (1 - 1 / 20) ** 20) < 0.02  # the share that does not come, about 1 / e
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)
    first, second = _epochs(20, seed=0, epochs=2, replacement=True)
    assert not np.array_equal(first, second)


def test_batches_are_copies():
    x = np.arange(4, dtype=np.float32)
    for batch in data.batches(x, batch_size=4, shuffle=False):
        batch[:] = 9
    np.testing.assert_array_equal(x, [0, 1, 2, 3])


def test_wide_dtypes_become_what_jax_computes_in():
    index = np.arange(3)
    assert index.dtype == np.int64
    (batch,) = data.batches(index, batch_size=3)
    assert batch.dtype == np.int32
    with pytest.warns(UserWarning, match=r"batches: array 1 is float64, and JAX computes in float32 here.*astype"):
        found = data.batches(index, np.arange(3.0), batch_size=3, shuffle=False)
    assert next(iter(found))[1].dtype == np.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (np.float32, np.int8, np.uint16, bool, np.complex64, jnp.bfloat16, np.float16):
            (batch,) = data.batches(np.ones(3, dtype), batch_size=3)
            assert batch.dtype == dtype


def test_wide_dtypes_stay_where_jax_computes_in_them(x64):
    ((a, b),) = data.batches(np.array([2**40]), np.array([1e-300]), batch_size=1)
    assert (a.dtype, b.dtype) == (np.int64, np.float64)
    assert (a[0], b[0]) == (2**40, 1e-300)


def test_a_jax_array_is_data_too():
    x = jax.random.normal(jax.random.key(0), (5, 2))
    (batch,) = data.batches(x, batch_size=5, shuffle=False)
    assert isinstance(batch, np.ndarray)
    np.testing.assert_array_equal(batch, x)
