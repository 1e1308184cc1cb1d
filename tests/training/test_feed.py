"""What feeds a run: JAX's settings hold in all of it, uneven batches count by size, nothing ends in silence."""

import contextlib
import json

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxnet import data, layers, losses, optimizers, training
from jaxnet.errors import ConfigError, DataError, DTypeError, named
from jaxnet.training.devices import Place
from jaxnet.training.feed import Progress, Resident
from jaxnet.training.run import Run
from jaxnet.training.sources import Source
from jaxnet.training.streamed import Streamed
from tests.training import calls

RANDOM = np.random.default_rng(3)
X = RANDOM.standard_normal((20, 3)).astype(np.float32)
Y = (X[:, :1] - X[:, 1:2]).astype(np.float32)
NET = layers.chain(layers.dropout(0.2), layers.dense(1))
SGD = optimizers.sgd(0.1)


def batches(x=X, y=Y, size=8):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def fit(data=(X, Y), net=NET, loss=losses.mse, optimizer=SGD, **options):
    options = {"epochs": 2, "progress": False} | ({"batch_size": 8} if isinstance(data, tuple) else {}) | options
    return calls.fit(net, loss, optimizer, data, **options)


# --- JAX's settings -------------------------------------------------------------------------------------------------


def _of_fit(result):
    return result.history["loss"], result.params


def _train(net):
    state = training.init(net, SGD, X[:1], 0)
    step = training.make_step(net, losses.mse, SGD)
    return calls.train(step, state, (X, Y), epochs=1, batch_size=8, progress=False).history["loss"]


def _evaluate(net):
    params, state = net.init(0, X[:1])
    evaluate = training.make_evaluate(net, losses.mse, batch_size=20)
    return evaluate(params, state, (X, Y)), evaluate(params, state, batches(size=20))


def _sweep(net):
    result = training.sweep(
        net, losses.mse, lambda rate: optimizers.sgd(rate), (X, Y), settings=training.grid(seed=[0, 1], rate=[0.1]),
        epochs=1, batch_size=8,
    )  # fmt: skip
    return result.history, result.params


ENTRIES = {
    "fit, arrays": lambda net: _of_fit(fit(net=net, epochs=1)),
    "fit, stream": lambda net: _of_fit(fit(batches(X[:16], Y[:16]), net=net, epochs=1)),
    "train": _train,
    "make_evaluate": _evaluate,
    "sweep": _sweep,
}


@contextlib.contextmanager
def x64_everywhere():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


SETTINGS = {
    "enable_x64": lambda: jax.enable_x64(True),
    "enable_x64 of the process": x64_everywhere,
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "default_matmul_precision": lambda: jax.default_matmul_precision("highest"),
    "checking_leaks": jax.checking_leaks,
    "disable_jit": jax.disable_jit,
    "standard dtype promotion": lambda: jax.numpy_dtype_promotion("standard"),
    "log_compiles": jax.log_compiles,
}


@pytest.fixture(scope="module")
def usual():
    return {name: entry(NET) for name, entry in ENTRIES.items()}


# Each costs a program an entry; those that change nothing for one another are set together.
TOGETHER = (
    ["enable_x64"],
    ["enable_x64 of the process"],
    ["disable_jit"],
    ["debug_nans", "debug_infs", "log_compiles"],
    ["default_matmul_precision", "checking_leaks", "standard dtype promotion"],
)


@pytest.mark.parametrize("settings", TOGETHER, ids=", ".join)
def test_every_entry_gives_the_same_under_every_setting_of_jax(settings, usual):
    for name, entry in ENTRIES.items():
        with contextlib.ExitStack() as stack:
            for setting in settings:
                stack.enter_context(SETTINGS[setting]())
            found = jax.tree.leaves(entry(NET))
        for a, b in zip(found, jax.tree.leaves(usual[name]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)


def test_every_setting_is_tried():
    assert sorted(SETTINGS) == sorted(name for settings in TOGETHER for name in settings)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("setting", "layer", "names"), [("debug_nans", jnp.log, "log"), ("debug_infs", jnp.exp, "exp")]
)
def test_where_jax_looks_for_nan_the_error_names_the_primitive(entry, setting, layer, names):
    if (setting, entry) == ("debug_infs", "sweep"):
        pytest.skip("a sweep gives means over finite steps, and parameters that are NaN: JAX sees no Inf")
    net = layers.chain(layers.dense(1), lambda x: layer((x + 100) * (1 if names == "exp" else -1)))
    with SETTINGS[setting](), pytest.raises(FloatingPointError, match=rf"encountered in {names}\n"):
        ENTRIES[entry](net)


def _other(name):
    """A value of a setting that is not the one of this process."""
    value = jax.config.values["jax_" + name]
    if isinstance(value, bool):
        return not value
    return {
        "array_garbage_collection_guard": "log",
        "default_device": jax.devices("cpu")[-1],
        "default_matmul_precision": "high" if value == "highest" else "highest",
        "default_prng_impl": "rbg",
        "numpy_dtype_promotion": "standard",
        "numpy_rank_promotion": "warn",
        "legacy_prng_key": "warn",
        "transfer_guard": "log",
        "transfer_guard_device_to_device": "log",
        "transfer_guard_device_to_host": "log",
        "transfer_guard_host_to_device": "log",
    }[name]


PUBLIC = sorted(
    name.removeprefix("jax_")
    for name in jax.config.values
    if name.startswith("jax_") and callable(getattr(jax, name.removeprefix("jax_"), None))
)
# The guard forbids other threads; without tracing or execution nothing can be trained.
PUBLIC = [name for name in PUBLIC if name not in ("thread_guard", "no_tracing", "no_execution")]


def seen_by_a_loader(see):
    """What ``see()`` gives while a loader makes its batches, whatever thread that is in."""
    seen = []

    def loader():
        for batch in batches():
            seen.append(see())
            yield batch

    with contextlib.closing(
        Streamed(_measure, Source(lambda epoch: loader(), None), Place(None, None, True, True)).epoch(0, 0, 0)
    ) as run:
        list(run)
    return seen


def _measure(state, batch):
    return state, {"loss": jnp.mean(batch[0])}


def test_there_are_settings_to_carry():
    assert {
        "enable_x64",
        "debug_nans",
        "disable_jit",
        "default_device",
        "transfer_guard",
        "numpy_rank_promotion",
    } < set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_loader_sees_the_settings_of_the_caller(name):
    other = _other(name)
    with getattr(jax, name)(other):
        here = jax.config.values["jax_" + name]
        assert seen_by_a_loader(lambda: jax.config.values["jax_" + name]) == [here] * 3
    assert (
        seen_by_a_loader(lambda: jax.config.values["jax_" + name])
        == [jax.config.values["jax_" + name]] * 3
        != [here] * 3
    )


@pytest.mark.devices(2)
def test_a_loader_sees_the_mesh_of_the_caller_and_numpys_error_state():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert seen_by_a_loader(jax.sharding.get_mesh) == [mesh] * 3
        assert seen_by_a_loader(jax.sharding.get_abstract_mesh) == [mesh.abstract_mesh] * 3
    with np.errstate(over="raise"):
        assert seen_by_a_loader(lambda: np.geterr()["over"]) == ["raise"] * 3


def test_batches_of_64_bits_under_a_context_of_64_bits():
    net = layers.dense(1)

    def loader(epoch):
        for x, y in batches():
            yield jnp.asarray(x, jnp.float64), y.astype(np.float64)

    with jax.enable_x64(True):
        result = fit(loader, net=net, epochs=1)
        assert result.params["kernel"].dtype == jnp.float64
        same = fit([(np.float64(x), np.float64(y)) for x, y in batches()], net=net, epochs=1)
    np.testing.assert_array_equal(result.params["kernel"], same.params["kernel"])


# --- the order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mesh", [None, pytest.param(2, marks=pytest.mark.devices(2))])
def test_the_order_of_an_epoch_goes_to_the_device_once(mesh, monkeypatch):
    """With the longest run of dispatches, one step each: what a dispatch is given of the order is there already."""
    monkeypatch.setattr("jaxnet.training.feed.TARGET_SECONDS", 0.0)
    mesh = mesh and jax.make_mesh((mesh,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    arrays = training.arrays(X, Y, batch_size=4, drop_last=False)
    feed = Resident(_measure, arrays, Place(mesh, None, True, True))
    given, program = [], feed._programs["guarded"]
    feed._programs["guarded"] = lambda state, data, rows, *rest: given.append(rows) or program(state, data, rows, *rest)
    for epoch in range(3):
        state = jnp.zeros(())
        for done in feed.epoch(state, epoch, 0):
            state = done.train_state
    assert len(given) == 15
    assert all(isinstance(rows, jax.Array) for rows in given)
    assert len({id(rows) for rows in given}) == 3
    assert mesh is None or given[0].sharding.is_fully_replicated
    for epoch in range(3):
        order = data.epoch_order(20, seed=0, epoch=epoch)
        np.testing.assert_array_equal(np.ravel(given[5 * epoch]), order)
        np.testing.assert_array_equal(feed.samples(epoch, 1), order[4:8])
    assert feed._rows.cache_info().currsize <= 2


def _at(offset):
    """X where its memory is aligned as JAX takes it without a copy, or off it."""
    memory = np.empty(X.size + 32, np.float32)
    first = (-memory.ctypes.data % 64) // 4 + offset
    array = memory[first : first + X.size].reshape(X.shape)
    array[:] = X
    return array


def test_what_is_written_to_an_array_while_it_is_trained_on_changes_nothing():
    usual = jax.tree.leaves(_of_fit(fit()))
    for offset in (0, 1):
        mine = _at(offset)
        result = fit((mine, Y), callbacks=[lambda record, state, mine=mine: mine.fill(0)])
        assert not mine.any()
        for a, b in zip(jax.tree.leaves(_of_fit(result)), usual, strict=True):
            np.testing.assert_array_equal(a, b)


# --- means ----------------------------------------------------------------------------------------------------------


def test_an_uneven_last_batch_counts_by_its_samples():
    """Ten samples, two of them with a loss of 10000, one batch of eight and one of these two: 2000 and not 5000."""
    x, y = np.zeros((10, 1), np.float32), np.repeat(np.float32([0, 100]), [8, 2])[:, None]
    net = layers.stateless(lambda key, x: {"bias": jnp.zeros((1, 1))}, lambda params, x: x + params["bias"])
    options = {"net": net, "optimizer": optimizers.sgd(0.0), "epochs": 1}
    for given in (
        {"data": (x, y), "batch_size": 8, "drop_last": False, "shuffle": False},
        {"data": batches(x, y)},
    ):
        record = fit(**given, **options, metrics={"mae": losses.mae}).history[0]
        assert record["loss"] == pytest.approx(2000)
        assert record["mae"] == pytest.approx(20)
        assert record["loss_deviation"] == pytest.approx(4000)  # the root of (8 * 2000^2 + 2 * 8000^2) / 10
        assert record["grad_norm"] == pytest.approx(40)


BEGUN = training.init(layers.dense(1), SGD, X[:1], 0)


@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=12), st.data()
)
def test_means_are_over_samples_whatever_the_dispatches(steps, draw):
    sizes, values = np.array([size for size, _ in steps]), np.array([value for _, value in steps])
    run = Run(BEGUN, lambda state: state.params, None)
    cut = draw.draw(st.integers(0, len(steps)))
    for part in (slice(0, cut), slice(cut, None)):
        run.take(Progress(run.train_state, 0, {"loss": values[part]}, sizes[part]))
        run.epoch.totals = json.loads(json.dumps(run.epoch.totals))  # a checkpoint between them
    run.end_epoch(None, ())
    record = run.history[0]
    assert record["loss"] == pytest.approx(np.average(values, weights=sizes), rel=1e-9, abs=1e-9)
    deviation = np.sqrt(np.average((values - np.average(values, weights=sizes)) ** 2, weights=sizes))
    assert record["loss_deviation"] == pytest.approx(deviation, rel=1e-6, abs=1e-3)
    # Where all are equal, the mean is to the bit what it is without sizes.
    run.take(Progress(run.train_state, 0, {"loss": values}, 7))
    run.end_epoch(None, ())
    assert run.history[1]["loss"] == sum(values.tolist()) / len(values)


# --- the end of an epoch ---------------------------------------------------------------------------------------------

WRONG_BATCHES = {
    "None": (None, ConfigError, r"a pair \(x, target\), got None; nothing but its end ends an epoch"),
    "a dict": ({"image": X, "label": Y}, ConfigError, r"a dict of image, label; of a loader of dicts, give training.stream\(loader, pick=\('image', 'label'\)\)"),
    "text": ("abc", ConfigError, r"got 'abc'"),
    "a pair of texts": (("ab", "cd"), DTypeError, r"x must be an array, got str"),
    "an array": (X, ConfigError, r"got float32 \(20, 3\); to reproduce x itself, give \(x, x\)"),
    "four": ((X, Y, Y, Y), ConfigError, r"got a tuple of 4; .*pick=lambda b: \(\(b\[0\], b\[1\]\), b\[2\]\)\)"),
    "one": ((X,), ConfigError, r"got a tuple of 1; .*pick=lambda b: \(b\[0\], b\[0\]\)\)"),
    "a single example": ((X[0], Y[0]), DataError, r"(shapes x \(3,\), target \(1,\); are these single examples\? Then data.examples\(|one number of axes)"),
    "unequal lengths": ((X, Y[:3]), DataError, r"one entry an example on their first axes, got .*target \(3, 1\)"),
    "empty": ((X[:0], Y[:0]), DataError, r"the batch is empty"),
    "ragged": (([[1.0], [2.0, 3.0]], Y), DTypeError, r"x must be an array, got list; .*rows must have one length"),
    "objects": ((np.array([[1, None]]), Y), DTypeError, r"x has dtype object"),
    "masked": ((X, np.ma.masked_less(Y, 0)), DataError, r"target is a masked array"),
    "big-endian": ((X, Y.astype(">f4")), DTypeError, r"target has byte order"),
    "a tree with None's kin": (({"a": X, "b": object()}, Y), DTypeError, r"x\['b'\] must be an array, got object"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_BATCHES)
def test_a_wrong_batch_is_refused_with_its_place(wrong):
    batch, error, message = WRONG_BATCHES[wrong]
    good = batches()[0]
    source = named("fit")(Source)([good, good, batch, good], None)
    run = Streamed(_measure, source, Place(None, None, True, True))
    with pytest.raises(error, match=rf"^fit: epoch 4, batch 2: .*{message}"):
        list(run.epoch(jnp.zeros(()), 3, 0))
    with pytest.raises(error, match=rf"^fit: epoch 1, batch 0: .*{message}"):
        fit([batch, good])
    net = layers.dense(1)
    params, state = net.init(0, X[:1])
    with pytest.raises(error, match=rf"^evaluate: batch 1: .*{message}"):
        training.make_evaluate(net, losses.mse)(params, state, [good, batch])
    with pytest.raises(error, match=rf"^fit: validation: epoch 1, batch 0: .*{message}"):
        fit(validation=[batch])
