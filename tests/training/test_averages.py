"""Averages of the weights: what they are, where they are found, and what `fit` does with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet import activations, layers, losses, optimizers, training
from jaxnet.errors import ConfigError, DataError, ShapeError
from jaxnet.optimizers import averaged
from jaxnet.training.averaging import Averaged
from jaxnet.training.sources import Source

RNG = np.random.default_rng(0)
STEPS = 8
GRADS = RNG.standard_normal((STEPS, 3)).astype(np.float32)
X = RNG.standard_normal((24, 4)).astype(np.float32)
Y = RNG.standard_normal((24, 2)).astype(np.float32)
NET = layers.chain(layers.dense(5), layers.batch_norm(), activations.relu, layers.dense(2))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), a, b)


def warm(step):
    return jnp.minimum(0.9, (1 + step) / (3 + step))


def literal(decays, thetas, start=None):
    """The averages after every step, as sums over all of them, in float64."""
    found = []
    for i in range(1, STEPS + 1):
        weights = [(1 - decays[j]) * np.prod(decays[j + 1 : i]) for j in range(i)]
        first = 0 if start is None else np.prod(decays[:i]) * start
        total = first + sum(w * t for w, t in zip(weights, thetas[:i], strict=True))
        found.append(total / sum(weights) if start is None else total)
    return np.array(found)


START = np.array([1.0, -2.0, 0.5], np.float32)


@functools.cache
def trained():
    """The parameters after each step, and the averages by name."""
    sgd = optimizers.sgd(0.3)
    rules = {
        "debiased": optimizers.ema(sgd, 0.8), "from the start": optimizers.ema(sgd, 0.8, debias=False),
        "warming up": optimizers.ema(sgd, warm), "mean": optimizers.swa(sgd, 3, 2),
    }  # fmt: skip

    @jax.jit
    def run(params, grads):
        def step(carry, g):
            params, states = carry
            done = {name: rule.update(g, states[name], params) for name, rule in rules.items()}
            params = optimizers.apply_updates(params, done["mean"][0])
            states = {name: state for name, (_, state) in done.items()}
            return (params, states), (params, {name: averaged(state, params) for name, state in states.items()})

        return jax.lax.scan(step, (params, {name: rule.init(params) for name, rule in rules.items()}), grads)[1]

    return jax.device_get(run(START, GRADS))


def test_they_are_the_sums():
    thetas, found = trained()
    wide = np.asarray(thetas, np.float64)
    warming = [min(0.9, (1 + i) / (3 + i)) for i in range(STEPS)]
    close(found["debiased"], literal([0.8] * STEPS, wide))
    close(found["from the start"], literal([0.8] * STEPS, wide, np.asarray(START, np.float64)))
    close(found["warming up"], literal(warming, wide))
    close(found["mean"], [*wide[:2], *(wide[2 : i + 1 : 2].mean(0) for i in range(2, STEPS))])


@pytest.mark.peers
def test_they_are_pytorchs_averages():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle; it is in the `peers` extra")
    swa_utils = torch.optim.swa_utils
    thetas, found = trained()
    model = torch.nn.Linear(3, 1, bias=False)
    means = swa_utils.AveragedModel(model)
    moving = swa_utils.AveragedModel(model, avg_fn=swa_utils.get_ema_avg_fn(0.8))
    for i, theta in enumerate([START, *thetas]):
        with torch.no_grad():
            model.weight.copy_(torch.tensor(theta)[None])
        moving.update_parameters(model)  # of which the first is a copy
        if i >= 3 and (i - 3) % 2 == 0:
            means.update_parameters(model)
        if i:
            close(found["from the start"][i - 1], moving.module.weight[0].detach().numpy())
        if i >= 3:
            close(found["mean"][i - 1], means.module.weight[0].detach().numpy())


def test_the_first_in_a_mean_are_taken_to_the_bit():
    """However large those were that the average began as."""
    rule, params = optimizers.swa(optimizers.sgd(1.0), 2), jnp.full(1, 2.0**27)
    state = rule.init(params)
    for gradient in (2.0**27, -0.1):
        updates, state = rule.update(jnp.full(1, gradient), state, params)
        params = optimizers.apply_updates(params, updates)
    np.testing.assert_array_equal(params, np.float32(0.1))
    same(averaged(state, params), params)


PARAMS = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.full(3, 2.0)}
SGD, EMA = optimizers.sgd(1.0), lambda: optimizers.ema(optimizers.sgd(1.0), 0.5, debias=False)
COMPOSED = {
    "chain": (lambda: optimizers.chain(optimizers.clip_by_value(9.0), EMA()), "ab"),
    "two groups": (lambda: optimizers.partition({"a": EMA(), "b": optimizers.swa(SGD, 9)}), "a"),
    "master copy": (lambda: optimizers.master_copy(optimizers.partition({"a": EMA(), "b": EMA()})), "ab"),
    "flat": (lambda: optimizers.flat(EMA()), "ab"),
    "lookahead": (lambda: optimizers.lookahead(EMA(), 2, 0.5), None),
    "optax": (lambda: optax.chain(optax.multi_transform({"x": EMA(), "y": optax.sgd(1.0)}, {"a": "x", "b": "y"})), "a"),
    "none": (lambda: optimizers.master_copy(SGD), ""),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_they_are_found_wherever_they_are(name):
    make, averages = COMPOSED[name]
    optimizer = make()
    updates, state = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), optimizer.init(PARAMS), PARAMS)
    params = optimizers.apply_updates(PARAMS, updates)
    found = averaged(state, params)
    if averages is None:  # the outer one's are meant
        return same(found, PARAMS)
    for leaf in PARAMS:
        assert found[leaf].dtype == PARAMS[leaf].dtype
        np.testing.assert_array_equal(found[leaf], PARAMS[leaf] - (0.5 if leaf in averages else 1.0))
    return None


def test_refusals():
    state = EMA().init(PARAMS)
    with pytest.raises(
        ShapeError, match=r"averaged: the averages .* do not fit the parameters: at b \(3,\) for \(4,\)"
    ):
        averaged(state, {**PARAMS, "b": jnp.ones(4)})
    with pytest.raises(ShapeError, match=r"do not fit the parameters: PyTreeDef.*with the state of its last update"):
        averaged(state, [jnp.ones(2)])
    with pytest.raises(ConfigError, match="ema: the average of the weights needs the parameters"):
        EMA().update(PARAMS, state)
    with pytest.raises(ShapeError, match="ema: the average in the state do not fit"):
        EMA().update(PARAMS, state._replace(average={"a": jnp.ones(2)}), PARAMS)
    with pytest.raises(ConfigError, match="ema: decay must be"):
        optimizers.ema(SGD, 1.0)
    with pytest.raises(ConfigError, match="swa: start must be an integer >= 1"):
        optimizers.swa(SGD, 0)
    with pytest.raises(ConfigError, match=r"chain\[1\].*put the average last, or around all, as in ema\(chain"):
        optimizers.chain(EMA(), optimizers.clip_by_value(1.0)).init(PARAMS)
    params, norm = NET.init(0, X)
    with pytest.raises(DataError, match="reestimate: of 1 of 3 batches the statistics are not finite"):
        training.reestimate(NET, params, norm, [(X[:8], Y[:8]), (np.nan * X[:8], Y[:8]), (X[8:16], Y[8:16])])
    with pytest.raises(ConfigError, match="arrays are trained on in batches: give batch_size"):
        training.reestimate(NET, params, norm, (X, Y))
    watched = layers.watched(NET, lambda *of: ())
    with pytest.raises(ConfigError, match="a chain keeps statistics, and no other layers can be put into it"):
        training.reestimate(watched, params, norm, (X, Y), batch_size=8)


BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]


@pytest.mark.peers
def test_statistics_are_those_of_pytorchs_update_bn():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle; it is in the `peers` extra")
    net = layers.chain(layers.dense(5), layers.batch_norm(), layers.spectral_norm(layers.dense(5)), layers.batch_norm())
    params, state = net.init(0, X)
    _, state = net.apply(params, state, 3 * X, train=True)
    # The same product in PyTorch, by the kernel that the spectral norm makes in evaluation.
    plain, plain_params, plain_state = layers.merged(net, params, state)
    theirs = torch.nn.Sequential(
        torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 5), torch.nn.BatchNorm1d(5)
    )
    with torch.no_grad():
        for i in (0, 2):
            theirs[i].weight.copy_(torch.from_numpy(np.array(plain_params[i]["kernel"].T)))
            theirs[i].bias.copy_(torch.from_numpy(np.array(plain_params[i]["bias"])))
    torch.optim.swa_utils.update_bn([torch.from_numpy(x) for x, _ in BATCHES], theirs)
    found = training.reestimate(plain, plain_params, plain_state, BATCHES)
    for i in (1, 3):
        close(found[i], {"mean": theirs[i].running_mean.numpy(), "variance": theirs[i].running_var.numpy()})
    same(training.reestimate(net, params, state, BATCHES)[2], state[2])  # no other state is touched


def test_statistics_are_found_in_any_container():
    params, state = NET.init(0, X)
    wanted = training.reestimate(NET, params, state, BATCHES)
    arrays = training.arrays(X, Y, batch_size=8, shuffle=False)
    same(training.reestimate(layers.raveled(NET), optimizers.ravel(params), state, arrays), wanted)
    same(
        training.reestimate(NET, params, state, arrays, batches=1), training.reestimate(NET, params, state, BATCHES[:1])
    )
    deep = layers.repeat(layers.residual(layers.batch_norm()), 2)
    stacked, before = deep.init(0, X)
    after = training.reestimate(deep, stacked, before, BATCHES)["branch"]
    close(after["mean"][0], np.mean([x.mean(0) for x, _ in BATCHES], 0))
    assert (after["variance"][1] != before["branch"]["variance"][1]).all()
    frozen = layers.chain(layers.frozen(layers.batch_norm()), layers.dense(1))
    same(training.reestimate(frozen, *frozen.init(0, X), BATCHES), frozen.init(0, X)[1])
    same(training.reestimate(NET, params, state, BATCHES, freeze="1"), state)


def test_so_many_batches_of_a_stream_are_read_as_were_asked_for():
    params, state = NET.init(0, X)
    for batches in (1, 2, 3):
        found = training.reestimate(NET, params, state, BATCHES, batches=batches)
        same(found, training.reestimate(NET, params, state, BATCHES[:batches]))


def fit(optimizer, data=(X, Y), **options):
    options = {"batch_size": 8, "epochs": 3, "validation": (X[:9], Y[:9]), "progress": False, **options}
    return training.fit(NET, losses.mse, optimizer, data, **options)


def test_fit_evaluates_keeps_saves_and_returns_them(tmp_path):
    """Against the same by hand, from what is in the train state."""
    rule = lambda: optimizers.skip_nonfinite(optimizers.swa(optimizers.adam(0.1), 4, 2))  # noqa: E731
    whole = fit(rule())
    raw = whole.train_state
    params = averaged(raw.opt_state, raw.params)
    same(whole.params, params)
    assert (params[0]["kernel"] != raw.params[0]["kernel"]).all()
    same(whole.state, training.reestimate(NET, params, raw.state, training.arrays(X, Y, batch_size=8)))
    measured = training.make_evaluate(NET, losses.mse)(whole.params, whole.state, (X[:9], Y[:9]))["loss"]
    np.testing.assert_allclose(whole.history["validation_loss"][-1], measured, rtol=1e-6)

    fit(rule(), epochs=2, keep=tmp_path)
    gone_on = fit(rule(), keep=tmp_path)
    same((gone_on.params, gone_on.state), (whole.params, whole.state))
    same(training.load_best(tmp_path, NET, X), (whole.params, whole.state))
    done = fit(rule(), keep=tmp_path)  # nothing is left to do
    same((done.params, done.state), (whole.params, whole.state))


def test_fit_with_the_best_of_a_stream_on_a_mesh():
    """The statistics are of the first batches that were read; the best are those of its epoch."""
    mesh = training.sharded(jax.make_mesh((2,), ("data",)))
    kept = []

    def look(record, train_state):
        kept.append(jax.device_get((train_state.opt_state.average, train_state.state)))

    rule = optimizers.ema(optimizers.sgd(0.05), 0.9)
    dicts = [{"x": x, "y": y} for x, y in BATCHES]
    stream = training.stream(lambda epoch: dicts, pick=("x", "y"))
    result = fit(rule, stream, batch_size=None, early_stopping=3, mesh=mesh, callbacks=[look])
    best = int(np.argmin(result.history["validation_loss"]))
    average, state = kept[best]
    close(result.params, average)
    close(result.state, training.reestimate(NET, result.params, state, BATCHES))
    same(*(training.reestimate(NET, result.params, state, data) for data in (stream, BATCHES)))


def test_a_sweep_has_them_too():
    """Of each member what `fit` has, before a rung and after it."""
    seeds, decays = [4, 7], [0.5, 0.9]
    rule = lambda decay: optimizers.ema(optimizers.sgd(0.1), decay)  # noqa: E731
    swept = training.sweep(
        NET, losses.mse, rule, (X, Y), settings={"seed": seeds, "decay": decays}, epochs=2, batch_size=8,
        validation=(X[:9], Y[:9]), halving=training.Halving(2, first=1),
    )  # fmt: skip
    m = swept.best
    data = training.arrays(X, Y, batch_size=8, seed=seeds[m])
    alone = fit(rule(decays[m]), data, batch_size=None, epochs=2, key=seeds[m])
    close(swept.member(m), (alone.params, alone.state), rtol=1e-4)
    close(swept.history["validation_loss"][:, m], alone.history["validation_loss"], rtol=1e-4)


def test_a_run_that_goes_on_where_no_batch_is_left_has_the_statistics_of_its_first():
    rule, source = optimizers.ema(optimizers.sgd(0.1), 0.9, debias=False), Source(BATCHES, None)
    train_state = training.init(NET, rule, X[:1], 0)._replace(step=jnp.int32(3))
    params, state = Averaged(NET, source, None)(train_state)
    same(state, training.reestimate(NET, params, train_state.state, BATCHES[:1]))


def test_the_batches_of_the_statistics_stay_where_a_loader_fills_its_arrays_anew():
    x, y = (np.empty_like(part) for part in BATCHES[0])

    def refilled(epoch):
        for batch in BATCHES:
            x[:], y[:] = batch
            yield x, y

    rule, source = optimizers.ema(optimizers.sgd(0.1), 0.9), Source(refilled, None)
    averages, train_state = Averaged(NET, source, None), training.init(NET, rule, X[:1], 0)
    assert len(list(source.epoch(0, 0, None)[0])) == len(BATCHES)
    params, state = averages(train_state._replace(step=jnp.int32(3)))
    same(state, training.reestimate(NET, params, train_state.state, BATCHES))


def test_fit_returns_lookaheads_slow_weights_and_freezes():
    result = fit(
        optimizers.lookahead(optimizers.sgd(0.1), 5, 0.5), epochs=1, validation=None,
        step=training.stepping(freeze=["0", "1"]),
    )  # fmt: skip
    slow = result.train_state.opt_state.slow
    same(result.params[3], slow[3])
    assert (slow[3]["kernel"] != result.train_state.params[3]["kernel"]).all()
    same(result.state, NET.init(jax.random.split(jax.random.key(0))[0], X)[1])  # of a frozen part they stay
