"""Every door that takes data takes what users hold it in, converted once, and refuses the rest in words that help."""

import collections
import functools
import tempfile
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import data, layers, losses, optimizers, training
from jaxnet.errors import CheckpointError, ConfigError, DataError, DTypeError

RANDOM = np.random.default_rng(5)
X = RANDOM.integers(-4, 5, (24, 2)).astype(np.float32)
Y = (X[:, :1] - X[:, 1:]).astype(np.float32)
NET, SGD = layers.dense(1), optimizers.sgd(0.01)


@functools.cache
def _step():
    return training.make_step(NET, losses.mse, SGD), training.init(NET, SGD, X[:1], 0)


@functools.cache
def _evaluate():
    return training.make_evaluate(NET, losses.mse), NET.init(0, X[:1])


def _options(given):
    return {"epochs": 2, "progress": False} | ({"batch_size": 8} if isinstance(given, tuple) else {})


def fit(given, validation=None, **options):
    return training.fit(NET, losses.mse, SGD, given, validation=validation, **_options(given) | options)


def train(given):
    return training.train(*_step(), given, **_options(given))


def evaluate(given):
    function, (params, state) = _evaluate()
    return function(params, state, given)


def sweep(given):
    settings = training.grid(seed=[0], rate=[0.1])
    return training.sweep(NET, losses.mse, optimizers_of, given, settings=settings, epochs=1, batch_size=8)


def optimizers_of(rate):
    return optimizers.sgd(rate)


DOORS = {
    "fit": lambda given: fit(given).history["loss"],
    "validation": lambda given: fit((X, Y), given).history["validation_loss"],
    "train": lambda given: train(given).history["loss"],
    "evaluate": lambda given: evaluate(given)["loss"],
    "sweep": lambda given: sweep(given).history["loss"],
}
WHO = {"fit": "fit", "validation": "fit: validation", "train": "fit", "evaluate": "evaluate", "sweep": "sweep"}


class Dlpack:
    """Another library's array, which knows one protocol alone."""

    def __init__(self, array):
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


class Arraylike:
    """Another library's array, which knows the other."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


def _memmap(array):
    with tempfile.TemporaryFile() as file:
        stored = np.memmap(file, array.dtype, "w+", shape=array.shape)
        stored[:] = array
        return stored


def _torch(array):
    return pytest.importorskip("torch").from_numpy(array)


def _pandas(array):
    return pytest.importorskip("pandas").DataFrame(array, columns=["a", "b"][: array.shape[1]])


def _polars(array):
    return pytest.importorskip("polars").DataFrame(array)


HOLDERS = {
    "NumPy": np.array,
    "JAX": jnp.asarray,
    "memory map": _memmap,
    "lists": np.ndarray.tolist,
    "__array__": Arraylike,
    "__dlpack__": Dlpack,
    "masked array without a mask": np.ma.array,
    "pandas": _pandas,
    "polars": _polars,
    "torch": _torch,
    "torch with a gradient": lambda array: _torch(array).requires_grad_(),
}
holder = pytest.mark.parametrize(
    "holder", [pytest.param(name, marks=[pytest.mark.peers] if "torch" in name else []) for name in HOLDERS]
)


@pytest.fixture(scope="module")
def usual():
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]
    return {door: (take((X, Y)), None if door == "sweep" else take(batches)) for door, take in DOORS.items()}


TOGETHER = [("NumPy", "JAX", "memory map"), ("lists", "__array__", "__dlpack__")]
TOGETHER += [("masked array without a mask", "pandas", "polars")]
TORCH = pytest.param("torch", "torch with a gradient", "torch", marks=pytest.mark.peers)


def test_every_holder_is_tried_at_every_door():
    assert {*sum(TOGETHER, ()), *TORCH.values} == HOLDERS.keys()


@pytest.mark.parametrize(("one", "two", "three"), [*TOGETHER, TORCH])
@pytest.mark.parametrize("door", DOORS)
def test_every_door_takes_every_holder_of_numbers(door, one, two, three, usual):
    """Three of them at once: as inputs and as targets, and each with a batch of its own."""
    take, holds = DOORS[door], [HOLDERS[name] for name in (one, two, three)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for hold, of_target in ((holds[0], holds[1]), (holds[2], holds[0])):
            np.testing.assert_allclose(take((hold(X), of_target(Y))), usual[door][0], rtol=1e-6)
        if door != "sweep":
            parts = zip(holds, (0, 8, 16), strict=True)
            batches = [[hold(X[i : i + 8].copy()), hold(Y[i : i + 8].copy())] for hold, i in parts]
            np.testing.assert_allclose(take(batches), usual[door][1], rtol=1e-6)


@holder
def test_split_and_batches_take_every_holder_of_numbers(holder):
    parts, right = (data.split(hold(X), hold(Y), seed=1) for hold in (HOLDERS[holder], np.array))
    jax.tree.map(np.testing.assert_array_equal, parts, right)
    for (x, y), (right_x, right_y) in zip(
        data.batches(HOLDERS[holder](X), HOLDERS[holder](Y), batch_size=8),
        data.batches(X, Y, batch_size=8),
        strict=True,
    ):
        assert type(x) is type(y) is np.ndarray
        np.testing.assert_array_equal(x, right_x)
        np.testing.assert_array_equal(y, right_y)


class Column(Sequence):
    """A column of a data set, as Hugging Face has them: neither list nor array."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, i):
        return self.values[i]


def test_columns_of_a_data_set_and_batches_that_are_no_pairs(usual):
    x, y = next(data.batches(Column(X.tolist()), Column(Y.tolist()), batch_size=24, shuffle=False))
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)
    for sequence in (range(24), collections.UserList(Y), collections.deque(Y)):  # which are no columns
        with pytest.raises(DTypeError, match=f"array 0 must be an array, got {type(sequence).__name__}"):
            data.batches(sequence, batch_size=8)
    dicts = [{"label": Y[i : i + 8], "image": X[i : i + 8]} for i in (0, 8, 16)]
    for pick in (("image", "label"), lambda b: (b["image"], b["label"])):
        np.testing.assert_allclose(DOORS["fit"](training.stream(dicts, pick=pick)), usual["fit"][1], rtol=1e-6)
    picked = training.stream(dicts, pick=("image", "label"))
    np.testing.assert_allclose(DOORS["evaluate"](picked), usual["evaluate"][1], rtol=1e-6)
    params, state = NET.init(0, X[:1])
    whole = training.predict(NET, params, state, X)
    for given in (picked, data.blocks(X, batch_size=9, block=4)):
        parts = list(training.predict(NET, params, state, given))
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6)
    measured = DOORS["evaluate"](data.examples(list(zip(X, Y, strict=True)), batch_size=9))  # none left out
    np.testing.assert_allclose(measured, usual["evaluate"][1], rtol=1e-6)
    with pytest.raises(KeyError) as caught:
        fit(training.stream(dicts, pick=lambda b: (b["img"], b["label"])))
    assert "fit: pick raised this for epoch 1, batch 0" in caught.value.__notes__
    with pytest.raises(
        ConfigError, match=r"^fit: epoch 1, batch 0: pick names 'img', and the batch has 'label', 'image'"
    ):
        fit(training.stream(dicts, pick=("img", "label")))


@pytest.mark.peers
def test_a_dataloader_of_pytorch(usual):
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(_torch(X), _torch(Y)), batch_size=8)
    for door in ("fit", "validation", "train", "evaluate"):
        np.testing.assert_allclose(DOORS[door](loader), usual[door][1], rtol=1e-6)


@pytest.mark.peers
def test_bfloat16_stays_what_it_is():
    tensor = _torch(X).to(pytest.importorskip("torch").bfloat16)
    x = next(data.batches(tensor, batch_size=24, shuffle=False))
    assert x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(x.astype(np.float32), X)


def test_series_columns_and_trees():
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    for library in (pandas, polars):
        frame = library.DataFrame({"a": X[:, 0], "b": X[:, 1], "text": ["x"] * 24})
        x, y = next(data.batches(frame[["a", "b"]], frame["a"], batch_size=24, shuffle=False))
        np.testing.assert_array_equal(x, X)
        np.testing.assert_array_equal(y, X[:, 0])
        with pytest.raises(
            DTypeError,
            match=r"^fit: x has columns that hold no numbers, or have gaps \(text (str|object|String)\);.*encode",
        ):
            fit((frame, Y))
    net = layers.Layer(
        lambda key, x: NET.init(key, x[0]), lambda params, state, x, **o: NET.apply(params, state, x[0] + x[1], **o)
    )
    result = training.fit(net, losses.mse, SGD, ([X, X.tolist()], Y), epochs=1, batch_size=8, progress=False)
    right = training.fit(NET, losses.mse, SGD, (2 * X, Y), epochs=1, batch_size=8, progress=False)
    np.testing.assert_allclose(result.history["loss"], right.history["loss"], rtol=1e-6)


# --- dtypes and warnings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("door", DOORS)
def test_one_warning_for_a_door_at_the_users_line(door, batched):
    if batched and door == "sweep":
        pytest.skip("a sweep takes arrays alone")
    wide = (X.astype(np.float64), Y.astype(np.float64))
    given = [tuple(a[i : i + 8] for a in wide) for i in (0, 8, 16)] if batched else wide
    with pytest.warns(UserWarning, match="float64") as caught:
        DOORS[door](given)
    (warning,) = caught
    assert str(warning.message).startswith(f"{WHO[door]}: x and target are float64, and JAX computes in float32 here")
    assert warning.filename == __file__


def test_the_warning_of_batches_points_at_the_users_line():
    with pytest.warns(UserWarning, match="^batches: array 1 is float64") as caught:
        next(data.batches(X, np.float64(Y), batch_size=8))
    assert [warning.filename for warning in caught] == [__file__]


def test_numbers_of_python_take_the_dtype_of_jax(x64):
    assert next(data.batches(X.tolist(), batch_size=24)).dtype == np.float64
    with jax.enable_x64(False):
        assert next(data.batches(X.tolist(), batch_size=24)).dtype == np.float32


# --- what is refused -------------------------------------------------------------------------------------------------


class Indexed:
    def __getitem__(self, i):
        return X[i], Y[i]

    def __len__(self):
        return len(X)


MUST = r"data must be .*\(x, target\).*got "
WRONG = {
    "a fraction": (0.2, ConfigError, MUST + r"0\.2; .* data\.split\(x, target, fractions=\(0\.8, 0\.2\)\)"),
    "a number": (7, ConfigError, MUST + "int$"),
    "nothing": ((), ConfigError, MUST + "a tuple of 0"),
    "x alone in a tuple": ((X,), ConfigError, MUST + r"a tuple of 1; .*\(x, x\)"),
    "x alone": (X, ConfigError, MUST + r"ndarray; .*\(x, x\)"),
    "four": ((X, X, X, Y), ConfigError, MUST + r"a tuple of 4; several inputs are one tree, \(\(a, b\), target\)"),
    "a path": ("data.npz", ConfigError, MUST + r"str; load the file first"),
    "a dict": ({"image": X, "label": Y}, ConfigError, MUST + r"dict; give the pair \(data\['image'\], data\['label'\]\)"),
    "a data set by index": (Indexed(), ConfigError, MUST + r"Indexed; .*data.examples\("),
    "unequal lengths": ((X, Y[:9]), DataError, "the arrays have 24, 9 samples"),
    "no samples": ((X[:0], Y[:0]), DataError, "the data are empty"),
    "scalars": ((1.0, 2.0), DataError, "x is a scalar"),
    "no x": ((None, Y), DTypeError, "x must be an array or a tree of arrays, got None"),
    "no target": ((X, None), DTypeError, "target must be an array, got NoneType"),
    "text": ((np.array(["a"] * 24), Y), DTypeError, "x has dtype <U1, which is no number"),
    "objects": ((X, np.array([None] * 24)), DTypeError, "target has dtype object, which is no number"),
    "ragged lists": (([[1.0], [2.0, 3.0]], [1.0, 2.0]), DTypeError, "x must be an array, got list; .*one length"),
    "a leaf of a tree": (({"a": X, "b": "c"}, Y), DTypeError, r"x\['b'\] must be an array, got str"),
    "NaN": ((np.where(X[3, 0] == X, np.nan, X).astype(np.float32), Y), DataError, "x holds nan at index"),
    "Inf on the device": ((jnp.asarray(X), jnp.asarray(Y).at[3, 0].set(jnp.inf)), DataError, r"target holds inf at index \(3, 0\)"),
    "a mask": ((np.ma.masked_greater(X, 0), Y), DataError, r"x is a masked array with \d+ of 48 .*\.filled\(value\)"),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_data_are_refused_at_every_door(wrong, door):
    given, error, message = WRONG[wrong]
    who = rf"^{WHO[door]}: " if wrong != "no target" else ""
    with pytest.raises(error, match=who + message):
        DOORS[door](given)


ITERABLES = {
    "a list of two arrays": ([X, Y], ConfigError, r"got a list of two arrays; a pair of arrays is a tuple, \(x, target\)"),
    "a function without the epoch": (lambda: [(X, Y)], ConfigError, "must take the epoch's number, from 0 .*lambda epoch"),
    "a function to nothing": (lambda epoch: None, ConfigError, r"data\(0\) must return an iterable of batches, got NoneType"),
    "an empty list": ([], DataError, "held no batch"),
    "an empty function": (lambda epoch: iter(()), DataError, "held no batch"),

}  # fmt: skip


@pytest.mark.parametrize("door", [door for door in DOORS if door != "sweep"])
@pytest.mark.parametrize("wrong", ITERABLES)
def test_wrong_iterables_are_refused_at_every_door(wrong, door):
    given, error, message = ITERABLES[wrong]
    with pytest.raises(error, match=rf"^{WHO[door]}: .*{message}" if message else ""):
        DOORS[door](given)


@pytest.mark.parametrize("door", ["fit", "train", "validation"])
def test_an_iterator_that_will_not_last_is_refused_before_it_is_read(door):
    read = []

    def generator():
        read.append(1)
        yield X, Y

    with pytest.raises(
        DataError, match=rf"^{WHO[door]}: the data are an iterator, .* 2 epochs; give a list, a function"
    ):
        DOORS[door](generator())
    assert not read


def test_messages_name_what_is_wrong_and_its_cure(tmp_path):
    """What a newcomer has met."""
    x, y = np.ones((8, 2), np.float32), np.ones((8, 1), np.float32)

    def fit(data, **options):
        options = {"epochs": 3, "batch_size": 4, "progress": False} | options
        return training.fit(layers.dense(1), losses.mse, optimizers.sgd(0.1), data, **options)

    with pytest.raises(DTypeError, match=r"number the classes, data.classes\(names\).encode\(names\)"):
        fit((x, np.array(["cat", "dog"] * 4)))
    with pytest.raises(
        DTypeError, match=r"^fit: target has dtype <U3, which is no number; number the classes, data.classes"
    ):
        fit((x, ["cat", "dog"] * 4))
    with pytest.raises(
        ConfigError, match=r"batch_size must not be given; of single examples, data.examples\(data, batch_size=4\)"
    ):
        fit(list(zip(x, y, strict=True)))
    with pytest.raises(ConfigError, match=r"two names, \('image', 'label'\), .*or a function .*got 'image'"):
        training.stream([(x, y)], pick="image")
    for tree in ({"tokens": x, "mask": x}, (x, x)):
        with pytest.raises(DTypeError, match=r"array 0 is a (dict|tuple) of arrays; give its arrays one by one"):
            data.split(tree, y)
    with pytest.raises(DataError, match=r"epoch 3 held no batch, and steps_per_epoch=2 were wanted.*has ended"):
        fit((x, y), validation=training.stream(iter([(x, y)] * 4), steps_per_epoch=2))
    fit((x, y), epochs=1, keep=tmp_path)
    for net in (layers.chain(layers.dense(2), layers.dense(1)), layers.dense(1, bias=False)):
        with pytest.raises(CheckpointError, match=r"fit: the run in .* is of another network.*training.load_best\("):
            training.fit(
                net, losses.mse, optimizers.sgd(0.1), (x, y), epochs=2, batch_size=4,
                keep=training.keep(tmp_path, resume="anyway"), progress=False,
            )  # fmt: skip


def test_of_a_table_only_the_columns_that_are_wrong_are_named():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": [1.0, 2.0], "b": [True, False], "c": ["x", "y"], "d": [1, 2]})
    with pytest.raises(DTypeError, match=r"\(b bool, c (object|str)\)"):
        data.split(table, np.ones(2))
