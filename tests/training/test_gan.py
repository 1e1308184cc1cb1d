"""Two players: against the two updates written out, and on a distribution that must be learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, layers, losses, optimizers, training
from jaxnet.errors import ConfigError, DataError, NonFiniteError
from tests.training import calls

G = layers.chain(layers.dense(8), layers.batch_norm(), activations.leaky_relu, layers.dropout(0.2), layers.dense(2))
D = layers.parallel(  # scores, and features to be matched
    layers.chain(layers.dense(8), activations.leaky_relu, layers.dense(1)),
    layers.chain(layers.dense(3), layers.batch_norm()),
    combine=lambda parts: list(parts),
)
RANDOM = np.random.default_rng(0)
Z = RANDOM.standard_normal((16, 4)).astype(np.float32)
REAL = RANDOM.standard_normal((16, 2)).astype(np.float32)


def judge_loss(real, made):
    return jnp.mean(jax.nn.relu(1 - real[0])) + jnp.mean(jax.nn.relu(1 + made[0]))


def make_loss(made_scores, real_scores, made, real):
    return -jnp.mean(made_scores[0]) + losses.mae(made_scores[1], real_scores[1]) + 2.0 * losses.mae(made, real)


OPTIMIZER = optimizers.adam(1e-2, b1=0.5)
STEP = jax.jit(training.make_gan_step(G, D, make_loss, judge_loss, OPTIMIZER, OPTIMIZER))


@pytest.fixture
def players():
    return STEP, training.init_gan(G, D, OPTIMIZER, OPTIMIZER, Z, 0), OPTIMIZER


def test_equals_the_two_updates_written_out(players):
    step, state, optimizer = players
    after, metrics = step(state, (Z, REAL))

    @jax.jit
    def written_out(g, d, key):
        keys = jax.random.split(jax.random.fold_in(key, 0), 4)

        def of_discriminator(params):
            made, _ = G.apply(g.params, g.state, Z, train=True, key=keys[0])
            real_scores, middle = D.apply(params, d.state, REAL, train=True, key=keys[1])
            made_scores, last = D.apply(params, middle, made, train=True, key=keys[2])
            return judge_loss(real_scores, made_scores), last

        (d_value, d_state), grads = jax.value_and_grad(of_discriminator, has_aux=True)(d.params)
        updates, _ = optimizer.update(grads, d.opt_state, d.params)
        d_params = optimizers.apply_updates(d.params, updates)

        def of_generator(params):
            made, g_state = G.apply(params, g.state, Z, train=True, key=keys[0])
            made_scores, _ = D.apply(d_params, d_state, made, train=True, key=keys[3])
            real_scores, _ = D.apply(d_params, d_state, REAL, train=True, key=keys[3])
            return make_loss(made_scores, real_scores, made, REAL), g_state

        (value, g_state), grads = jax.value_and_grad(of_generator, has_aux=True)(g.params)
        updates, _ = optimizer.update(grads, g.opt_state, g.params)
        return (d_value, value), (optimizers.apply_updates(g.params, updates), g_state, d_params, d_state)

    values, expected = written_out(state.generator, state.discriminator, state.key)
    np.testing.assert_allclose((metrics["discriminator_loss"], metrics["loss"]), values, rtol=1e-5)
    got = (after.generator.params, after.generator.state, after.discriminator.params, after.discriminator.state)
    differences = jax.tree.map(lambda a, b: np.abs(np.subtract(a, b)).max(), got, expected)
    # Adam's first step is the gradient's sign: where that is rounding alone (biases before batch norm), it may turn.
    flipped = [name for name, x in jax.tree_util.tree_leaves_with_path(differences) if x > 1e-5]
    assert all(jax.tree_util.keystr(name).endswith("['bias']") for name in flipped)
    assert len(flipped) <= 2


def test_critic_steps_are_single_steps_on_the_parts():
    """A discriminator that is a plain layer, so that nothing but the parameters goes from step to step."""
    g, d = layers.dense(2), layers.chain(layers.dense(8), activations.leaky_relu, layers.dense(1))
    rule, frozen = optimizers.adam(1e-2), optimizers.sgd(0.0)

    def judge(real, made):
        return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + made))

    def fool(made_scores, real_scores, made, real):
        return -jnp.mean(made_scores)

    start = training.init_gan(g, d, rule, rule, Z, 0)
    after, measured = jax.jit(training.make_gan_step(g, d, fool, judge, rule, rule, critic_steps=4))(start, (Z, REAL))
    state, values = start, []
    one, waiting = (jax.jit(training.make_gan_step(g, d, fool, judge, of_g, rule)) for of_g in (rule, frozen))
    still = start._replace(generator=start.generator._replace(opt_state=frozen.init(start.generator.params)))
    for i in range(3):
        still, metrics = waiting(still, (Z[4 * i : 4 * i + 4], REAL[4 * i : 4 * i + 4]))
        values.append(metrics["discriminator_loss"])
    state, metrics = one(start._replace(discriminator=still.discriminator), (Z[12:], REAL[12:]))
    values.append(metrics["discriminator_loss"])
    for a, b in zip(jax.tree.leaves(after[:2]), jax.tree.leaves(state[:2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(measured["discriminator_loss"], np.mean(values), rtol=1e-5)
    np.testing.assert_allclose(measured["loss"], metrics["loss"], rtol=1e-5)
    assert measured["discriminator_learning_rate"] == measured["learning_rate"] == np.float32(1e-2)
    assert (int(after.step), int(measured["skipped"])) == (1, 0)

    bad = REAL.copy()
    bad[5] = np.nan  # in the second part: that step alone is left out
    spoiled, measured = jax.jit(training.make_gan_step(g, d, fool, judge, rule, rule, critic_steps=4))(start, (Z, bad))
    assert int(measured["skipped"]) == int(spoiled.guard.total) == 1
    assert 0 <= int(spoiled.guard.leaf) < 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(spoiled[:2]))


def test_a_loss_scale_changes_no_bit_and_adapts(players):
    step, state, _ = players
    scaled = training.init_gan(G, D, OPTIMIZER, OPTIMIZER, Z, 0, loss_scale=2.0**12)
    (plain, _), (after, measured) = step(state, (Z, REAL)), step(scaled, (Z, REAL))
    for a, b in zip(jax.tree.leaves(plain[:2]), jax.tree.leaves(after[:2]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(after.loss_scale.good_steps) == 1
    halved, _ = step(scaled, (Z, REAL * np.float32(np.nan)))
    assert float(halved.loss_scale.value) == 2.0**11
    assert measured["skipped"] == 0


def test_a_loss_scale_is_halved_where_either_player_is_not_finite():
    def fool(made_scores, real_scores, made, real):
        return -jnp.mean(made_scores) * jnp.where(real[0, 0] > 9, jnp.nan, 1)

    g, d, rule = layers.dense(2), layers.dense(1), optimizers.sgd(0.1)
    start = training.init_gan(g, d, rule, rule, Z, 0, loss_scale=8.0)
    step = jax.jit(training.make_gan_step(g, d, fool, lambda real, made: jnp.mean(made) - jnp.mean(real), rule, rule))
    for added, scale, moved in ((0, 8, [True, True]), (np.nan, 4, [True, False]), (99, 4, [False, True])):
        after, _ = step(start, (Z, REAL + np.float32(added)))
        assert float(after.loss_scale.value) == scale
        kernels = [(a.params["kernel"], b.params["kernel"]) for a, b in zip(after[:2], start[:2], strict=True)]
        assert [bool((a != b).any()) for a, b in kernels] == moved


def test_the_generators_average_is_evaluated_and_returned():
    g, d = layers.dense(2), layers.dense(1)
    rule = optimizers.sgd(0.1)
    averaging = optimizers.ema(rule, 0.5)
    step = training.make_gan_step(
        g,
        d,
        lambda made, real, *_: -jnp.mean(made),
        lambda real, made: jnp.mean(made) - jnp.mean(real),
        averaging,
        rule,
    )
    begun, kernels, seen = training.init_gan(g, d, averaging, rule, Z, 0), [], []
    result = calls.train(
        step, begun, (Z, REAL), epochs=3, batch_size=16, progress=False,
        weights=lambda state: state.weights,
        evaluate=lambda state: {"norm": seen.append(state.weights[0]["kernel"]) or 0.0},
        callbacks=[lambda _, state: kernels.append(np.asarray(state.generator.params["kernel"], np.float64))],
    )  # fmt: skip
    shares = np.array([0.25, 0.5, 1.0])
    expected = np.tensordot(shares, np.stack(kernels), 1) / shares.sum()
    np.testing.assert_allclose(result.best[0]["kernel"], expected, rtol=1e-5)
    np.testing.assert_array_equal(seen[-1], result.best[0]["kernel"])
    assert np.abs(kernels[-1] - expected).max() > 1e-3


def test_the_generator_learns_a_distribution():
    net = layers.chain(layers.dense(16), activations.leaky_relu, layers.dense(1))
    judge = layers.chain(
        layers.dense(16), activations.leaky_relu, layers.dense(16), activations.leaky_relu, layers.dense(1)
    )
    optimizer = optimizers.adam(3e-3, b1=0.5)
    step = training.make_gan_step(
        net, judge,
        lambda made_scores, real_scores, made, real: -jnp.mean(made_scores),
        lambda real, made: jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + made)),
        optimizer, optimizer,
    )  # fmt: skip
    state = training.init_gan(net, judge, optimizer, optimizer, jnp.zeros((1, 2)), 1)
    random = np.random.default_rng(0)
    noise = random.standard_normal((4096, 2)).astype(np.float32)
    real = (3 + 0.5 * random.standard_normal((4096, 1))).astype(np.float32)
    before, _ = net.apply(state.generator.params, state.generator.state, noise, train=False)
    result = calls.train(step, state, (noise, real), epochs=15, batch_size=64, progress=False)
    params, network_state = result.best
    made, _ = net.apply(params["generator"], network_state["generator"], noise, train=False)
    assert abs(float(jnp.mean(before)) - 3) > 1.5
    assert abs(float(jnp.mean(made)) - 3) < 0.4
    assert {"loss", "discriminator_loss", "discriminator_grad_norm"} <= set(result.history.names)


def test_a_player_whose_gradient_is_not_finite_waits(players):
    step, state, _ = players
    before, _ = step(state, (Z, REAL))
    after, metrics = step(before, (Z, REAL * np.float32(np.nan)))
    assert not np.isfinite(metrics["discriminator_loss"])
    for a, b in zip(
        jax.tree.leaves((after.params, after.state)), jax.tree.leaves((before.params, before.state)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert (int(after.step), int(after.guard.in_row), int(after.guard.total)) == (2, 1, 1)
    assert 0 <= int(after.guard.leaf) < len(jax.tree.leaves(state.discriminator.params))


def test_the_guard_counts_the_generators_leaves_after_the_discriminators(players):
    _, state, optimizer = players

    def bad(*given):
        return make_loss(*given) * jnp.float32(jnp.nan)

    after, _ = jax.jit(training.make_gan_step(G, D, bad, judge_loss, optimizer, optimizer))(state, (Z, REAL))
    assert int(after.guard.total) == 1
    assert int(after.guard.leaf) == len(jax.tree.leaves(state.discriminator.params))


def test_a_discriminator_that_never_learns_ends_the_run(players):
    step, state, _ = players
    data = Z, REAL * np.float32(1e30)  # finite, so that no check of data refuses it
    with pytest.raises(NonFiniteError, match="3 steps in a row were not finite"):
        calls.train(step, state, data, epochs=9, batch_size=4, max_skipped=3, progress=False)


def test_resumes_as_any_run(tmp_path, players):
    step, state, _ = players

    def run(epochs, **options):
        return calls.train(step, state, (Z, REAL), epochs=epochs, batch_size=4, progress=False, **options)

    run(1, keep=tmp_path)
    resumed, unbroken = run(3, keep=tmp_path), run(3)
    for a, b in zip(jax.tree.leaves(resumed.best), jax.tree.leaves(unbroken.best), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_input_is_refused():
    adam = optimizers.adam(1e-3)
    with pytest.raises(ConfigError, match="generator_loss must be callable"):
        training.make_gan_step(G, D, "hinge", judge_loss, adam, adam)
    with pytest.raises(ConfigError, match="an optimizer is a pair"):
        training.init_gan(G, D, adam, 1e-3, Z, 0)
    with pytest.raises(ConfigError, match="critic_steps must be an integer >= 1"):
        training.make_gan_step(G, D, make_loss, judge_loss, adam, adam, critic_steps=0)
    state = training.init_gan(G, D, adam, adam, Z, 0)
    with pytest.raises(DataError, match="critic_steps=3 must divide the batch of 16"):
        training.make_gan_step(G, D, make_loss, judge_loss, adam, adam, critic_steps=3)(state, (Z, REAL))
    with pytest.raises(ConfigError, match=r"got a tuple of 3"):
        STEP(state, (Z, REAL, REAL))
    with pytest.raises(ConfigError, match="the losses of two players take no weights"):
        calls.train(STEP, state, (Z, REAL, np.abs(REAL)), epochs=1, batch_size=4, progress=False)
    with pytest.raises(ConfigError, match=r"a pair \(x, target\)"):
        training.make_gan_step(G, D, make_loss, judge_loss, adam, adam)(training.init_gan(G, D, adam, adam, Z, 0), Z)
