"""``freeze=``: what does not learn has no gradient, counts nowhere, and runs as in evaluation; later it may learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet import activations, layers, losses, optimizers, regularizers, training
from jaxnet.errors import ConfigError
from jaxnet.paths import select
from jaxnet.training.freezing import in_evaluation

RNG = np.random.default_rng(0)
X = RNG.standard_normal((16, 4)).astype(np.float32)
Y = RNG.standard_normal((16, 2)).astype(np.float32)
BACKBONE = layers.chain(layers.dense(6), layers.batch_norm(), layers.dropout(0.5), jnp.tanh)
NET = layers.chain(BACKBONE, layers.dropout(0.3), layers.dense(2))


def begun():
    """Weights to begin with, and statistics of other data than X."""
    params, state = NET.init(0, X)
    state = NET.apply(params, state, 3 * X + 1, train=True, key=jax.random.key(1))[1]
    return params, state


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def rule():
    return optimizers.chain(optimizers.clip_by_global_norm(0.05), optimizers.adamw(0.1, weight_decay=0.5))


def fit(net=NET, optimizer=None, freeze="0", epochs=1, **options):
    options = {"batch_size": 8, "progress": False, **options}
    step = training.stepping(freeze=freeze, **options.pop("step", {}))
    return training.fit(net, losses.mse, optimizer or rule(), (X, Y), epochs=epochs, step=step, **options)


def test_it_is_the_frozen_layer_with_the_parameters_where_they_were():
    """`layers.frozen`, whose parameters are a state, does the same: in parts, with a scale, a guard, a penalty."""
    params, state = begun()
    other = layers.chain(layers.frozen(BACKBONE), *(part for _, part in NET.about.parts[1:]))
    options = {"regularizer": regularizers.l2(0.01), "accumulate": 2, "guard": "update"}
    results = []
    for net, freeze, weights in (
        (NET, "0", (params, state)),
        (other, None, (((), *params[1:]), ({"params": params[0], "state": state[0]}, *state[1:]))),
    ):
        began = training.pretrained(net, *weights)
        train_state = training.init(began, rule(), X, 0, loss_scale=2.0**10, freeze=freeze)
        step = jax.jit(training.make_step(net, losses.mse, rule(), freeze=freeze, **options))
        for x in (X, np.nan * X, X):
            train_state, measured = step(train_state, (x, Y))
        results.append((train_state, measured))
    (ours, measured), (wanted, as_wanted) = results
    same(ours.params[0], params[0])
    same(ours.state[0], state[0])
    same((ours.params[2], ours.opt_state[1].mu[2], ours.guard.total), (wanted.params[2], wanted.opt_state[1].mu[2], 1))
    same(measured, as_wanted)
    assert jax.tree.leaves(ours.opt_state[1].mu[0]) == []
    assert int(ours.guard.leaf) == 4  # of all leaves: the first of the head


@pytest.mark.peers
def test_it_is_pytorchs_frozen_backbone():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle; it is in the `peers` extra")
    net = layers.chain(layers.chain(layers.dense(6), layers.batch_norm(), activations.relu), layers.dense(2))
    params, state = net.init(0, X)
    theirs = torch.nn.Sequential(
        torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU()), torch.nn.Linear(6, 2)
    )
    with torch.no_grad():
        for (to, name), leaf in (
            ((theirs[0][0], "weight"), params[0][0]["kernel"].T), ((theirs[0][0], "bias"), params[0][0]["bias"]),
            ((theirs[1], "weight"), params[1]["kernel"].T), ((theirs[1], "bias"), params[1]["bias"]),
        ):  # fmt: skip
            getattr(to, name).copy_(torch.from_numpy(np.array(leaf)))
    theirs[0].requires_grad_(False).eval()
    their_rule = torch.optim.AdamW(theirs[1].parameters(), lr=0.1, weight_decay=0.5)
    step = jax.jit(training.make_step(net, losses.mse, rule(), freeze=["0/*"]))
    train_state = training.init(net, rule(), X, 0, freeze=["0/*"])._replace(params=params, state=state)
    for _ in range(4):
        their_rule.zero_grad()
        loss = torch.nn.functional.mse_loss(theirs(torch.from_numpy(X)), torch.from_numpy(Y))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs[1].parameters(), 0.05)
        their_rule.step()
        train_state, measured = step(train_state, (X, Y))
        np.testing.assert_allclose(measured["grad_norm"], norm, rtol=1e-4)
        np.testing.assert_allclose(measured["loss"], loss.detach(), rtol=1e-4)
    np.testing.assert_allclose(train_state.params[1]["kernel"].T, theirs[1].weight.detach(), rtol=1e-4, atol=1e-6)


def test_no_gradient_of_it_is_computed():
    @jax.custom_vjp
    def times(w, x):
        return w * x

    def backward(kept, g):
        raise AssertionError("a gradient of what is frozen")

    times.defvjp(lambda w, x: (w * x, None), backward)
    poisoned = layers.stateless(lambda key, x: {"scale": jnp.ones((), x.dtype)}, lambda p, x: times(p["scale"], x))
    net = layers.chain(poisoned, layers.dense(2))
    make = jax.eval_shape
    for freeze in ("0", lambda path, leaf: path.startswith("0"), (True, False), "!1"):
        train_state = training.init(net, optimizers.sgd(0.1), X, 0, freeze=freeze)
        make(training.make_step(net, losses.mse, optimizers.sgd(0.1), freeze=freeze), train_state, (X, Y))
    with pytest.raises(AssertionError, match="a gradient of what is frozen"):
        make(training.make_step(net, losses.mse, optimizers.sgd(0.1)), train_state, (X, Y))


def test_parts_run_in_evaluation_wherever_they_are():
    """Of a container whose parameters are frozen in part, what is frozen whole; of a scan too."""
    block = layers.residual(layers.chain(layers.dense(4), layers.batch_norm()))
    net = layers.mixed_precision(layers.chain(layers.repeat(block, 2), layers.batch_norm(), layers.dense(2)))
    params, state = net.init(0, X)
    frozen = select(params, ["0/branch/1", "2"])
    _, after = in_evaluation(net, frozen).apply(params, state, X, train=True)
    same(after[0], state[0])
    assert (after[1]["mean"] != state[1]["mean"]).all()
    _, after = in_evaluation(net, select(params, "0/branch/1/scale")).apply(params, state, X, train=True)
    assert (after[0]["branch"][1]["mean"] != state[0]["branch"][1]["mean"]).any()  # a layer that learns, if in part


def test_a_run_goes_on_frozen_as_it_was_and_thaws(tmp_path):
    params, state = begun()
    net = training.pretrained(NET, params, state)
    sgd = optimizers.partition({"*/kernel": optimizers.sgd(0.1), "*": optimizers.sgd(0.2)})
    whole = fit(net, sgd, epochs=2, key=3)
    fit(net, sgd, epochs=1, key=3, keep=tmp_path)
    gone_on = fit(net, sgd, epochs=2, key=3, keep=tmp_path)
    same((gone_on.params, gone_on.state), (whole.params, whole.state))
    same(whole.params[0], params[0])
    assert (whole.params[2]["kernel"] != params[2]["kernel"]).all()
    with pytest.raises(ConfigError, match=r"is another one than this call's: what differs is .*parameters are frozen"):
        fit(net, sgd, freeze=["0", "2/bias"], epochs=3, key=3, keep=tmp_path)
    thawed = fit(training.pretrained(NET, whole.params, whole.state), sgd, freeze=None)
    assert (thawed.params[0][0]["kernel"] != params[0][0]["kernel"]).all()
    assert (thawed.state[0][1]["mean"] != state[0][1]["mean"]).all()


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(lambda: optax.sgd(0.1, momentum=0.9), id="optax"),
        pytest.param(
            lambda: optimizers.master_copy(optimizers.partition({"2/bias": None, "*": optimizers.muon(0.1)})),
            id="master-copy-partition-muon",
        ),
    ],
)
def test_with_any_optimizer_and_on_a_mesh(optimizer):
    mesh = (
        training.sharded(jax.make_mesh((2,), ("data",))) if optimizer().update.__module__.startswith("optax") else None
    )
    result = fit(NET, optimizer(), mesh=mesh)
    params, _ = NET.init(jax.random.split(jax.random.key(0))[0], X)
    same(result.train_state.params[0], params[0])
    assert (result.train_state.params[2]["kernel"] != params[2]["kernel"]).all()


def test_a_sweep_freezes_too():
    swept = training.sweep(
        NET, losses.mse, lambda rate: optimizers.adam(rate), (X, Y), settings={"seed": [0, 0], "rate": [0.1, 0.2]},
        epochs=1, batch_size=8, freeze="0",
    )  # fmt: skip
    first, second = swept.member(0)[0], swept.member(1)[0]
    same(first[0], second[0])
    assert (first[2]["kernel"] != second[2]["kernel"]).all()


def test_refusals():
    x = jnp.ones((2, 4))
    sgd, adam = optimizers.sgd(0.1), optimizers.adam(0.1)
    for freeze, message in (
        ("3/*", r"the pattern '3/\*' fits no leaf; the paths are 0/0/bias, 0/0/kernel"),
        ("*", r"freeze='\*' chooses all leaves, and none is left to learn; the paths are 0/0/bias"),
        (False, "freeze=False chooses no leaf"),
        (3, "freeze must be a tree of bools, patterns .*, got 3; all of a chain's part 3 is '3'"),
    ):
        with pytest.raises(ConfigError, match=message):
            training.init(NET, sgd, x, 0, freeze=freeze)
    with pytest.raises(ConfigError, match=r"flat layout have no leaves to freeze; keep the tree \(no layers.raveled\)"):
        fit(layers.raveled(NET))
    step = training.make_step(layers.watched(NET, lambda *of: ()), losses.mse, adam, freeze="0")
    with pytest.raises(
        ConfigError, match="make_step: in a chain some leaves are frozen, and no part of it can be put in"
    ):
        step(training.init(NET, adam, x, 0, freeze="0"), (X, Y))
    step = training.make_step(NET, losses.mse, adam, freeze="0")
    with pytest.raises(ConfigError, match="make_step: the optimizer's state was made for other leaves"):
        step(training.init(NET, adam, x, 0), (X, Y))
    with pytest.raises(ConfigError, match="the step takes a TrainState, got tuple"):
        step((), (X, Y))
