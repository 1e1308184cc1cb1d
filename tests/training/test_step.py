"""The training step against a loop written by hand, and what it does with values that are not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import activations, layers, losses, optimizers, regularizers, training
from jaxnet.errors import ConfigError, DataError, DTypeError, ShapeError
from jaxnet.training.accumulate import over_parts

X = np.random.default_rng(0).standard_normal((12, 16, 2)).astype(np.float32)
LABELS = (np.arange(12) % 3).astype(np.int32)


def network(*, noise=True):
    return layers.chain(
        layers.conv(4, 3, padding="same", bias=not noise),  # before batch norm its gradient is rounding alone
        *([layers.batch_norm()] if noise else []),
        activations.relu,
        *([layers.dropout(0.3)] if noise else []),
        layers.flatten(),
        layers.dense(3),
    )


def accuracy(logits, labels):
    return jnp.mean((logits.argmax(-1) == labels).astype(jnp.float32))


def begin(net, optimizer, key=3, **options):
    return training.init(net, optimizer, jax.ShapeDtypeStruct((1, 16, 2), jnp.float32), key, **options)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, a), jax.tree.map(np.asarray, b))


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("optimizer", [optimizers.adam(1e-2), optax.adam(1e-2)], ids=["ours", "optax"])
def test_equals_the_loop_written_by_hand(optimizer):
    net = network()
    train_state = begin(net, optimizer)
    params, state, opt_state = train_state.params, train_state.state, optimizer.init(train_state.params)
    step = jax.jit(training.make_step(net, losses.softmax_cross_entropy, optimizer, metrics={"accuracy": accuracy}))

    @jax.jit
    def by_hand(params, state, opt_state, key):
        def loss(params):
            logits, after = net.apply(params, state, X, train=True, key=key)
            return losses.softmax_cross_entropy(logits, LABELS), (after, logits)

        (value, (after, logits)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        return optimizers.apply_updates(params, updates), after, opt_state, value, accuracy(logits, LABELS), norm

    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        for i in range(5):
            key = jax.random.fold_in(jax.random.split(jax.random.key(3))[1], i)
            params, state, opt_state, value, score, norm = by_hand(params, state, opt_state, key)
            train_state, metrics = step(train_state, (X, LABELS))
            assert set(metrics) - {"learning_rate"} == {"loss", "accuracy", "grad_norm", "skipped"}
            assert metrics.get("learning_rate", 0.01) == np.float32(0.01)
            np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
            np.testing.assert_allclose(metrics["accuracy"], score)
            np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert int(train_state.step) == 5
    assert_close(train_state.params, params)
    assert_close(train_state.state, state)


@functools.cache
def in_parts(parts):
    net, optimizer = network(noise=False), optimizers.sgd(0.1)
    step = training.make_step(
        net, losses.softmax_cross_entropy, optimizer, accumulate=parts, regularizer=regularizers.l2(0.01)
    )
    return jax.jit(lambda batch: step(begin(net, optimizer), batch))((X, LABELS))


@pytest.mark.parametrize("parts", [2, 5, 12, 20])
def test_accumulated_parts_equal_the_whole_batch(parts):
    """Also where they do not divide it, or are more than its examples."""
    (whole, measured), (after, same) = in_parts(1), in_parts(parts)
    assert_close(whole.params, after.params)
    assert_close(measured, same)


def test_every_part_has_a_number_of_its_own():
    """By which it draws its noise; also where the first parts have one example more than the others."""

    def part(i, numbers, batch):
        return jnp.zeros(()), numbers.at[i].add(1), jnp.zeros(())

    _, numbers, _ = over_parts(part, (jnp.ones((7, 1)), jnp.ones(7)), 3, None, jnp.zeros(()), jnp.zeros(3))
    np.testing.assert_array_equal(numbers, 1)


def test_batch_norm_sees_the_parts_one_after_the_other():
    net, optimizer = layers.chain(layers.batch_norm(decay=0.5), layers.flatten(), layers.dense(3)), optimizers.sgd(0.1)
    step = jax.jit(training.make_step(net, losses.softmax_cross_entropy, optimizer, accumulate=2))
    train_state, _ = step(begin(net, optimizer), (X, LABELS))
    mean = np.zeros(2)
    for part in (X[:6], X[6:]):
        mean = 0.5 * mean + 0.5 * part.mean((0, 1), dtype=np.float64)
    np.testing.assert_allclose(train_state.state[0]["mean"], mean, rtol=1e-5)


def test_regularizer_is_minimized_and_measured_apart():
    net, optimizer = network(noise=False), optimizers.sgd(1.0)
    penalty = regularizers.l2(0.1)
    train_state = begin(net, optimizer)
    (plain, bare), (after, metrics) = (
        jax.jit(training.make_step(net, losses.softmax_cross_entropy, optimizer, regularizer=r))(
            train_state, (X, LABELS)
        )
        for r in (None, penalty)
    )
    np.testing.assert_allclose(metrics["penalty"], penalty(train_state.params), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], bare["loss"], rtol=1e-6)
    expected = plain.params[0]["kernel"] - 0.2 * train_state.params[0]["kernel"]
    np.testing.assert_allclose(after.params[0]["kernel"], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(after.params[0]["bias"], plain.params[0]["bias"], rtol=1e-6)


@functools.cache
def by_adam():
    """A network, its optimizer, and their step, compiled once for several tests."""
    net, optimizer = network(), optimizers.adam(1e-2)
    return net, optimizer, jax.jit(training.make_step(net, losses.softmax_cross_entropy, optimizer))


def test_without_the_guard_every_step_is_taken():
    net, optimizer, guarded = by_adam()
    unguarded = jax.jit(training.make_step(net, losses.softmax_cross_entropy, optimizer, guard=False))
    begun = begin(net, optimizer)
    (a, measured), (b, same) = guarded(begun, (X, LABELS)), unguarded(begun, (X, LABELS))
    assert_close((a.params, a.state, a.opt_state, measured), (b.params, b.state, b.opt_state, same))
    spoiled, metrics = unguarded(begun, (X * np.float32(np.nan), LABELS))
    assert np.isnan(metrics["loss"])
    assert np.isnan(spoiled.params[-1]["bias"]).all()
    with pytest.raises(ConfigError, match="a loss scale changes at steps that are not finite, so it needs guard=True"):
        unguarded(begin(net, optimizer, loss_scale=8.0), (X, LABELS))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30], ids=["nan", "inf", "overflowing"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counts(bad):
    net, optimizer, step = by_adam()
    before, _ = step(begin(net, optimizer), (X, LABELS))
    spoiled = X.copy()
    spoiled[4, 3, 1] = bad
    if bad == 1e30:  # finite gradients, whose squares are not
        spoiled = np.where(np.arange(16)[:, None] < 8, X * 1e25, X).astype(np.float32)
        net = layers.chain(layers.flatten(), layers.dense(3))
        optimizer = optimizers.sgd(0.1)
        step = jax.jit(training.make_step(net, losses.softmax_cross_entropy, optimizer))
        before = begin(net, optimizer)
    after, metrics = step(before, (spoiled, LABELS))
    assert not np.isfinite(metrics["grad_norm"])
    for name in ("params", "state", "opt_state"):
        assert_same(getattr(before, name), getattr(after, name))
    assert int(after.step) == int(before.step) + 1
    assert (int(after.guard.in_row), int(after.guard.total), int(after.guard.step)) == (1, 1, int(before.step))
    again, _ = step(after, (X, LABELS))
    assert (int(again.guard.in_row), int(again.guard.total)) == (0, 1)
    assert any(
        (a != b).any() for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(after.params), strict=True)
    )


def test_the_guard_names_the_first_bad_gradient():
    @jax.custom_jvp
    def spoil(x):
        return x

    spoil.defjvp(lambda primals, tangents: (primals[0], tangents[0] * jnp.float32(jnp.inf)))

    def scale(params, x):
        return x * params["a"][None] + spoil(params["b"])[None]

    net = layers.stateless(lambda key, x: {"a": jnp.ones(3), "b": jnp.ones(3)}, scale)
    optimizer = optimizers.sgd(0.1)
    step = jax.jit(training.make_step(net, losses.mse, optimizer))
    train_state = training.init(net, optimizer, jnp.ones((2, 3)), 0)
    after, _ = step(train_state, (jnp.ones((2, 3)), jnp.zeros((2, 3))))
    assert int(after.guard.leaf) == 1


def test_loss_scaling_saves_float16_gradients_and_adapts():
    net = layers.mixed_precision(layers.dense(1, bias=False), compute=jnp.float16)
    x, target = jnp.full((4, 1), 1e-4), jnp.full((4, 1), 1e-4)

    def loss(prediction, target):  # its gradient, 1e-8, is 0 in float16
        return jnp.mean(prediction) * 1e-4 + 0 * jnp.mean(target)

    optimizer = optimizers.sgd(1.0)
    step = jax.jit(training.make_step(net, loss, optimizer))
    plain = training.init(net, optimizer, x, 0)
    scaled = training.init(net, optimizer, x, 0, loss_scale=2.0**12)
    after, metrics = step(plain, (x, target))
    assert metrics["grad_norm"] == 0
    assert_same(after.params, plain.params)
    after, metrics = step(scaled, (x, target))
    np.testing.assert_allclose(metrics["grad_norm"], 1e-8, rtol=1e-2)
    assert int(after.loss_scale.good_steps) == 1

    too_large = training.init(net, optimizer, x, 0, loss_scale=2.0**40)  # Inf in float16
    halved, metrics = step(too_large, (x, target))
    assert not np.isfinite(metrics["grad_norm"])
    assert float(halved.loss_scale.value) == 2.0**39
    nearly = scaled._replace(loss_scale=scaled.loss_scale._replace(good_steps=jnp.int32(1999)))
    doubled, _ = step(nearly, (x, target))
    assert (float(doubled.loss_scale.value), int(doubled.loss_scale.good_steps)) == (2.0**13, 0)


@pytest.mark.parametrize("scale", [0.25, 1.0, 2.0**-120, 2.0**-126])
def test_a_small_loss_scale_halves_too(scale):
    net, optimizer = layers.dense(1), optimizers.sgd(0.1)
    step = jax.jit(training.make_step(net, losses.mse, optimizer))
    x, target = jnp.full((4, 1), jnp.inf), jnp.ones((4, 1))
    after, _ = step(training.init(net, optimizer, x, 0, loss_scale=scale), (x, target))
    assert float(after.loss_scale.value) == max(scale / 2, 2.0**-126)


def test_the_largest_loss_scale_does_not_double():
    """Of a gradient of 0, at any scale; doubled it would be Inf, and every step after it skipped."""
    net, optimizer = layers.dense(1), optimizers.sgd(0.1)
    step = jax.jit(training.make_step(net, losses.mse, optimizer))
    x, target = jnp.zeros((4, 1)), jnp.zeros((4, 1))
    begun = training.init(net, optimizer, x, 0, loss_scale=2.0**126)
    for _ in range(2):
        begun, metrics = step(
            begun._replace(loss_scale=begun.loss_scale._replace(good_steps=jnp.int32(1999))), (x, target)
        )
        assert (float(begun.loss_scale.value), int(metrics["skipped"])) == (2.0**127, 0)


def test_float16_parameters_are_refused_with_a_loss_scale():
    net, optimizer = layers.dense(1), optimizers.sgd(0.1)
    x = jnp.ones((4, 2), jnp.float16)
    step = training.make_step(net, losses.mse, optimizer)
    with pytest.raises(ConfigError, match=r"\['bias'\] is float16.*compute=jnp.float16"):
        step(training.init(net, optimizer, x, 0, loss_scale=8.0), (x, x[:, :1]))


SIXTEEN = [jnp.float16, jnp.bfloat16]


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("accumulate", [1, 512])
def test_parts_of_16_bits_are_summed_in_float32(dtype, accumulate):
    """The gradient of mean((x w)^2 / 2) over ones is w, however many parts it is summed from."""
    net = layers.dense(1, bias=False, kernel_init=lambda key, shape, dtype: jnp.ones(shape, dtype))
    x, target = jnp.ones((1024, 1), dtype), jnp.zeros((1024, 1), dtype)
    optimizer = optimizers.sgd(0.5)
    step = jax.jit(training.make_step(net, losses.mse, optimizer, accumulate=accumulate))
    after, measured = step(training.init(net, optimizer, x, 0), (x, target))
    assert float(measured["grad_norm"]) == 2.0
    assert float(measured["loss"]) == 1.0
    assert float(after.params["kernel"][0, 0]) == 0.0
    assert after.params["kernel"].dtype == dtype


@functools.cache
def dense_layer(compute):
    return layers.mixed_precision(layers.dense(1), compute=compute) if compute else layers.dense(1)


@functools.cache
def step_of_a_dense_layer(compute, accumulate):
    return jax.jit(training.make_step(dense_layer(compute), losses.mse, optimizers.sgd(1.0), accumulate=accumulate))


@pytest.mark.parametrize("dtype", SIXTEEN)
@given(accumulate=st.sampled_from([2, 3, 8, 24]), scale=st.sampled_from([None, 2.0**6]), seed=st.integers(0, 9))
def test_16_bit_gradients_against_a_sum_in_float64(dtype, accumulate, scale, seed):
    x = np.random.default_rng(seed).standard_normal((24, 5)).astype(dtype)
    target = x[:, :1] * 3
    net = dense_layer(scale and dtype)
    x, example = (x.astype(np.float32), target.astype(np.float32)) if scale else (x, target)
    begun = training.init(net, optimizers.sgd(1.0), x, seed, loss_scale=scale)
    _, measured = step_of_a_dense_layer(scale and dtype, accumulate)(begun, (x, example))
    kernel, bias = (np.asarray(begun.params[name], np.float64) for name in ("kernel", "bias"))
    wide = np.asarray(x, np.float64)
    error = wide @ kernel + bias - np.asarray(target, np.float64)
    exact = np.sqrt(np.sum((2 * wide.T @ error / 24) ** 2) + np.mean(2 * error) ** 2)
    np.testing.assert_allclose(measured["grad_norm"], exact, rtol=0.05)


def test_a_16_bit_gradient_is_measured_in_float32():
    """300^2 is Inf in float16, and no reason to skip a step."""
    net, optimizer = layers.dense(1, bias=False), optimizers.sgd(1e-3)
    x, target = jnp.array([[300, 1]], jnp.float16), jnp.zeros((1, 1), jnp.float16)
    step = jax.jit(training.make_step(net, lambda p, t: jnp.mean(p) + 0 * jnp.sum(t), optimizer))
    _, measured = step(training.init(net, optimizer, x, 0), (x, target))
    assert measured["skipped"] == 0
    np.testing.assert_allclose(measured["grad_norm"], np.hypot(300, 1), rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_64_bits_are_measured_in_64_bits(x64, accumulate):
    net, optimizer = layers.dense(1, bias=False), optimizers.sgd(1e-60)
    x, target = jnp.full((4, 1), 1e25), jnp.full((4, 1), 3.0)
    assert x.dtype == jnp.float64
    step = jax.jit(training.make_step(net, losses.mse, optimizer, accumulate=accumulate))
    begun = training.init(net, optimizer, x, 0)
    after, measured = step(begun, (x, target))
    w = float(begun.params["kernel"][0, 0])
    assert measured["skipped"] == 0
    np.testing.assert_allclose(measured["loss"], (1e25 * w - 3) ** 2, rtol=1e-12)
    np.testing.assert_allclose(measured["grad_norm"], abs(2e25 * (1e25 * w - 3)), rtol=1e-12)
    assert {value.dtype.name for name, value in measured.items() if name != "skipped"} == {"float64"}
    assert after.params["kernel"].dtype == jnp.float64
    scaled, _ = step(training.init(net, optimizer, x, 0, loss_scale=8.0), (x, target))
    assert_same(scaled.params, after.params)


def complex_layer():
    return layers.stateless(
        lambda key, x: {"z": jnp.zeros((), jnp.complex64)}, lambda p, x: jnp.abs(p["z"] - x[0, 0] * (1 + 2j)) ** 2
    )


RULES = {
    "sgd": optimizers.sgd(0.1),
    "adam": optimizers.adam(0.05),
    "optax": optax.sgd(0.1),
    "clipped": optimizers.chain(optimizers.clip_by_global_norm(1.0), optimizers.sgd(0.1)),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("rule", RULES)
def test_complex_parameters_descend(rule, accumulate):
    net, optimizer = complex_layer(), RULES[rule]
    step = jax.jit(training.make_step(net, lambda p, t: jnp.mean(p) + 0 * jnp.sum(t), optimizer, accumulate=accumulate))
    train_state = training.init(net, optimizer, jnp.ones((1, 1)), 0)
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        for _ in range(150):
            train_state, measured = step(train_state, (jnp.ones((2, 1)), jnp.ones((2, 1))))
    np.testing.assert_allclose(train_state.params["z"], 1 + 2j, atol=0.02)
    assert measured["loss"] < 1e-3


def test_the_gradients_norm_counts_imaginary_parts_too():
    """The gradient of |z - (1 + 2i)|^2 at 0 has the parts -2 and 4."""
    net, optimizer = complex_layer(), optimizers.sgd(0.1)
    step = jax.jit(training.make_step(net, lambda prediction, target: prediction, optimizer))
    with jax.numpy_dtype_promotion("standard"):  # of the layer
        _, metrics = step(training.init(net, optimizer, ONES, 0), (ONES, ONES[:, :1]))
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(20), rtol=1e-6)


def test_a_complex_loss_is_refused():
    with pytest.raises(DTypeError, match=r"the loss must be a real number, got complex64"):
        run((ONES, ONES[:, :1]), lambda p, t: jnp.mean(p).astype(jnp.complex64))


def test_a_skip_inside_the_optimizer_counts():
    """By the guard of `skip_nonfinite`, which sees the update too."""
    rates = optimizers.sgd(lambda count: 1 / (3 - count.astype(jnp.float32)))
    for optimizer in (optimizers.skip_nonfinite(rates), optimizers.chain(optimizers.skip_nonfinite(rates))):
        for guard in (True, False):
            step = jax.jit(training.make_step(NET, losses.mse, optimizer, guard=guard))
            train_state = training.init(NET, optimizer, ONES, 0)
            skips = []
            for _ in range(6):  # the inner count stays at 3, so that every later step is skipped too
                train_state, measured = step(train_state, (ONES, ONES[:, :1]))
                skips.append(int(measured["skipped"]))
            assert skips == [0, 0, 0, 1, 1, 1]
            assert (int(train_state.guard.in_row), int(train_state.guard.total)) == (3, 3)
            assert np.isfinite(train_state.params["kernel"]).all()


@pytest.mark.parametrize("guard", [True, False])
def test_optimizers_that_ask_for_the_loss_are_given_it(guard):
    x = np.random.default_rng(3).standard_normal((32, 3)).astype(np.float32)
    target = x @ np.float32([[1.0], [-2.0], [0.5]]) + 0.3
    wanting = {
        "plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=5)),
        "polyak": optax.polyak_sgd(max_learning_rate=1.0),
        "lbfgs": optax.lbfgs(),
    }
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        for name, optimizer in wanting.items():
            step = jax.jit(training.make_step(NET, losses.mse, optimizer, guard=guard))
            train_state = training.init(NET, optimizer, x[:1], 0)
            for _ in range(60):
                train_state, measured = step(train_state, (x, target))
            assert measured["loss"] < 1e-3, name


def test_scaling_by_a_power_of_two_changes_no_bit_in_float32():
    net, optimizer, step = by_adam()
    plain, _ = step(begin(net, optimizer), (X, LABELS))
    scaled, _ = step(begin(net, optimizer, loss_scale=2.0**10), (X, LABELS))
    assert_same(plain.params, scaled.params)


def test_the_step_is_a_pure_function_to_scan_and_vmap():
    net = network()
    step = training.make_step(net, losses.softmax_cross_entropy, optimizers.adam(1e-2))
    batches = (X.reshape(3, 4, 16, 2), LABELS.reshape(3, 4))
    starts = [begin(net, optimizers.adam(1e-2), key) for key in (0, 1)]
    scanned = jax.jit(lambda s: jax.lax.scan(step, s, batches))
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), *starts)
    both, metrics = jax.jit(jax.vmap(lambda s: jax.lax.scan(step, s, batches)))(stacked)
    for i, start in enumerate(starts):
        alone, measured = scanned(start)
        np.testing.assert_allclose(metrics["loss"][i], measured["loss"], rtol=1e-5)
        assert_close(jax.tree.map(lambda a, i=i: a[i], both.params), alone.params, rtol=1e-4, atol=1e-5)


def test_the_step_is_traced_once():
    traces = []

    def loss(prediction, target):
        traces.append(1)
        return losses.softmax_cross_entropy(prediction, target)

    net, optimizer = network(), optimizers.adam(1e-2)
    step = jax.jit(training.make_step(net, loss, optimizer))
    train_state = begin(net, optimizer)
    for _ in range(3):
        train_state, _ = step(train_state, (X, LABELS))
    assert len(traces) == 1


NET, SGD = layers.dense(1), optimizers.sgd(0.1)
ONES = np.ones((4, 2), np.float32)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ConfigError, "loss must be callable, got 'mse'; give it itself, not its name: losses.mse", lambda: training.make_step(NET, "mse", SGD)),
        (ConfigError, "an optimizer is a pair.*got 0.1; .*optimizers.adam.0.1.", lambda: training.make_step(NET, losses.mse, 0.1)),
        (ConfigError, r"got 'adam'; give it itself, not its name: optimizers.adam\(\.\.\.\)$", lambda: training.make_step(NET, losses.mse, "adam")),
        (ConfigError, "loss must be callable, got an optimizer; the order is", lambda: training.make_step(NET, SGD, losses.mse)),
        (ConfigError, "loss must be callable, got the layer dense; the order is", lambda: training.make_step(losses.mse, NET, SGD)),
        (ConfigError, "got the function mse; the order is", lambda: training.make_step(NET, losses.mae, losses.mse)),
        (ConfigError, r"got float32 \(4, 2\); arrays come after it: training.init\(net, optimizer, x, key\)", lambda: training.init(NET, ONES, SGD, 0)),
        (ConfigError, "net must be a layer or a function.*got 'net'", lambda: training.make_step("net", losses.mse, SGD)),
        (ConfigError, "got the layer dense; give its place in the network", lambda: training.stepping(freeze=NET)),
        (ConfigError, "got 0; all of a chain's part 0 is '0'", lambda: training.make_step(NET, losses.mse, SGD, freeze=0)),
        (ConfigError, "metric 'a' must be callable, got 'accuracy'; .*: metrics.accuracy", lambda: training.make_step(NET, losses.mse, SGD, metrics={"a": "accuracy"})),
        (ConfigError, "call it first: adam", lambda: training.make_step(NET, losses.mse, optimizers.adam)),
        (ConfigError, "metrics must be a dict", lambda: training.make_step(NET, losses.mse, SGD, metrics=[losses.mae])),
        (ConfigError, "a name of its own", lambda: training.make_step(NET, losses.mse, SGD, metrics={"loss": print})),
        (ConfigError, "accumulate must be an integer >= 1", lambda: training.make_step(NET, losses.mse, SGD, accumulate=0)),
        (ConfigError, r"a pair \(x, target\), got a tuple of 4", lambda: run((ONES, ONES, ONES, ONES))),
        (ConfigError, r"give \(x, x\)", lambda: run(ONES)),
        (ConfigError, r"got float32 \(4, 2\); to reproduce", lambda: jax.jit(run)(ONES)),
        (DataError, "the batch is empty", lambda: run((ONES[:0], ONES[:0, :1]))),
        (ShapeError, r"the loss must be a scalar, got shape \(4, 1\); take its mean", lambda: run((ONES, ONES[:, :1]), lambda p, t: p - t)),
        (DTypeError, "the loss must be floating point, got int32; a count has no gradient; give it as a metric, and convert", lambda: run((ONES, ONES[:, :1]), lambda p, t: (p > t).sum())),
        (DTypeError, "metric 'n' must be floating point, got int32; convert it", lambda: run((ONES, ONES[:, :1]), metrics={"n": lambda p, t: (p > t).sum()})),
        (ShapeError, "the loss must return one scalar, got a tuple of 2", lambda: run((ONES, ONES[:, :1]), lambda p, t: (p.sum(), t))),
        (ShapeError, "must have one shape", lambda: run((ONES, ONES[:, 0]))),
        (ConfigError, "make one with training.init", lambda: training.make_step(NET, losses.mse, SGD)({}, (ONES, ONES))),
        (ConfigError, "loss_scale must be a finite number", lambda: training.init(NET, SGD, ONES, 0, loss_scale=0)),
        (ConfigError, "outside 0..2", lambda: training.init(NET, SGD, ONES, 2**32)),
    ],
)  # fmt: skip
def test_bad_input_is_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()


def run(batch, loss=losses.mse, **options):
    train_state = training.init(NET, SGD, ONES, 0)
    return training.make_step(NET, loss, SGD, **options)(train_state, batch)
