"""Loaders of our own: of arrays larger than memory, by blocks, and of examples, by index."""

import itertools
import re
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import data
from jaxnet.errors import ConfigError, DataError, DTypeError
from jaxnet.training.sources import Source


def _indices(batches):
    return [(batch[0] if isinstance(batch, tuple) else batch).tolist() for batch in batches]


@given(
    n=st.integers(1, 50), size=st.integers(1, 12), block=st.integers(1, 9), more=st.integers(0, 20),
    shuffle=st.booleans(), drop_last=st.booleans(), draw=st.data(),
)  # fmt: skip
def test_every_sample_comes_once_an_epoch_and_any_batch_can_be_the_first(
    n, size, block, more, shuffle, drop_last, draw
):
    size = min(size, n)
    index = np.arange(n)
    loader = data.blocks(
        index, {"twice": 2 * index}, batch_size=size, block=block, buffer=block + more, shuffle=shuffle, seed=3,
        drop_last=drop_last,
    )  # fmt: skip
    for epoch in (0, 1):
        batches = list(loader(epoch))
        sizes = [size] * (n // size) + [n % size] * (n % size > 0 and not drop_last)
        assert [len(x) for x, _ in batches] == sizes
        assert len(loader) == len(sizes)
        order = np.concatenate([x for x, _ in batches])
        assert len(set(order.tolist())) == len(order)
        np.testing.assert_array_equal(np.concatenate([y["twice"] for _, y in batches]), 2 * order)
        if not shuffle:
            np.testing.assert_array_equal(order, index[: len(order)])
    begun = loader(1)
    for _ in range(draw.draw(st.integers(0, len(batches)))):
        next(begun)
    resumed = loader(1)
    resumed.set_state(begun.get_state())
    assert _indices(resumed) == _indices(begun)


def test_the_order_is_by_blocks_and_shuffled_in_the_buffer():
    """Of 1000 samples in blocks of 10 and a buffer of 100: what is read together was in ten blocks anywhere."""
    loader = data.blocks(np.arange(1000), batch_size=100, block=10, buffer=100, seed=1)
    first, second = (np.array(_indices(loader(epoch))) for epoch in (0, 1))
    for filling in first:
        assert len(np.unique(filling // 10)) == 10
        assert np.sum(np.abs(np.diff(filling)) == 1) < 20  # not block after block
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, np.array(_indices(loader(0))))
    other = data.blocks(np.arange(1000), batch_size=100, block=10, buffer=100, seed=2)
    assert not np.array_equal(first, np.array(_indices(other(0))))
    starts = np.concatenate([np.array(_indices(loader(epoch)))[0] for epoch in range(30)])
    assert len(np.unique(starts)) > 900  # each block comes first some time: (9 / 10) ** 30 of them do not


def _resident(path):
    """Bytes of a file that count as this process's memory, by Linux."""
    with open("/proc/self/smaps") as file:
        maps = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", file.read())
    return sum(int(re.search(r"Rss: +(\d+)", one).group(1)) * 1024 for one in maps if path in one)


def test_memory_holds_the_buffer_and_not_the_file(tmp_path):
    path = str(tmp_path / "x.npy")
    np.save(path, np.arange(2**19, dtype=np.float32).reshape(2**13, 64))  # 2 MiB, in 2^13 samples
    loader = data.blocks(
        np.load(path, mmap_mode="r"), np.arange(2**13), batch_size=64, block=64, buffer=1024
    )  # of 256 KiB
    tracemalloc.start()
    total = 0.0
    for batch, number in loader(0):
        np.testing.assert_array_equal(batch[:, 0], 64 * number)
        total += float(batch.astype(np.float64).sum())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == (2**19 - 1) * 2**18
    assert 2**18 < peak < 2**20
    if sys.platform == "linux":
        assert max(_resident(path) for _ in itertools.islice(loader(1), 15, 40, 8)) <= 2**17


def test_a_block_is_of_a_mebibyte_and_the_buffer_of_64_unless_it_is_said():
    """Of all arrays together: 4 KiB a sample."""
    loader = data.blocks(np.zeros((8, 2, 256), np.float32), np.zeros((8, 256), np.float64), batch_size=4)
    assert (loader.block, loader.buffer) == (2**8, 2**14)


def test_a_private_copy_of_a_file_keeps_what_was_written_to_it(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((64, 4096), np.float32))
    x = np.load(tmp_path / "x.npy", mmap_mode="c")
    x[:] = np.arange(64)[:, None]
    for _ in range(2):
        assert _indices(x[:, 0] for x in data.blocks(x, batch_size=64, shuffle=False)(0)) == [list(range(64))]


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ConfigError, "blocks needs arrays", lambda: data.blocks(batch_size=2)),
        (ConfigError, "batch_size must be an integer >= 1", lambda: data.blocks(np.ones(4), batch_size=0)),
        (ConfigError, "the buffer must hold a block of 8 samples", lambda: data.blocks(np.ones(9), batch_size=2, block=8, buffer=4)),
        (DataError, "the arrays have 4, 3 samples", lambda: data.blocks(np.ones(4), np.ones(3), batch_size=2)),
        (DataError, "a batch of 5 does not fill from 4 samples.*or drop_last=False", lambda: data.blocks(np.ones(4), batch_size=5)),
        (DTypeError, "dtype <U1", lambda: data.blocks(np.array(["a"] * 4), batch_size=2)),
        (ConfigError, "examples are read by index.*got generator; .*DataLoader", lambda: data.examples(iter_of(), batch_size=2)),
        (DataError, "hold no example", lambda: data.examples([], batch_size=2)),
        (DataError, "a batch of 3 does not fill from 2", lambda: data.examples([1, 2], batch_size=3)),
        (ConfigError, r"pick must be two names, \('image', 'label'\)", lambda: data.examples([1, 2], batch_size=1, pick="image")),
        (DataError, r"example 1 has an array of shape \(3,\), and example 0 of \(2,\); cut or pad", lambda: read([([1, 2], 0), ([1, 2, 3], 0)])),
        (DataError, r"example 1 is built as .*a.*, and example 0 as", lambda: read([([1, 2], 0), ({"a": 1}, 0)])),
        (ConfigError, "pick names 'label', and the batch has 'x', 'y'", lambda: read([{"x": 1, "y": 2}] * 2, pick=("x", "label"))),
        (ConfigError, "takes parts of a dict by name, got a tuple", lambda: read([(1, 2)] * 2, pick=("x", "label"))),
    ],
)  # fmt: skip
def test_what_is_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()


def iter_of():
    yield 1


def read(source, **options):
    return next(data.examples(source, batch_size=2, shuffle=False, **options)(0))


def test_examples_are_stacked_leaf_by_leaf():
    x, y = read([(([1.0, 2.0], {"a": np.uint8(i)}), 5 + i) for i in range(2)])
    assert (x[0].dtype, x[1]["a"].dtype, y.dtype) == (np.float32, np.uint8, np.int64)
    assert (x[0].tolist(), x[1]["a"].tolist(), y.tolist()) == ([[1, 2], [1, 2]], [0, 1], [5, 6])
    assert read([(1.5, 2.5)] * 2)[0].dtype == np.float32  # Python's numbers take JAX's dtype
    assert read([(np.float64(1.5), 2)] * 2)[0].dtype == np.float64
    assert read([{"x": [i], "y": i} for i in range(2)], pick=("x", "y"))[0].tolist() == [[0], [1]]

    class Several:
        def __len__(self):
            return 4

        def __getitem__(self, i):
            raise AssertionError("one by one")

        def __getitems__(self, rows):
            return [(row, -row) for row in rows]

    assert read(Several())[1].tolist() == [0, -1]


def test_examples_come_in_the_order_of_arrays_and_go_on_where_they_stopped():
    order = data.epoch_order(10, seed=2, epoch=1)
    loader = data.examples([(i, i) for i in range(10)], batch_size=4, seed=2, drop_last=False)
    assert list(itertools.chain(*_indices(loader(1)))) == order.tolist()
    assert len(loader) == 3
    resumed = loader(1)
    resumed.set_state(2)
    assert _indices(resumed) == [order[8:].tolist()]
    assert Source(loader, None).settings["seed"] == 2
