"""Two players: a generator and a discriminator that train each other in turn."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet.errors import named
from jaxnet.layers.layer import Params, State, as_layer
from jaxnet.optimizers import _members
from jaxnet.training.state import Guard, new_guard
from jaxnet.training.step import Step, pair, scalar
from jaxnet.training.update import counted, take_step


class Player(NamedTuple):
    """One of the two networks.

    Attributes:
      params: its parameters.
      state: its network state.
      opt_state: its optimizer's state.
    """

    params: Params
    state: State
    opt_state: Any


class GANState(NamedTuple):
    """What a step of two players reads and writes; `train` takes it in the place of a `TrainState`.

    Attributes:
      generator: a `Player`.
      discriminator: a `Player`.
      key: the run's one PRNG key; a step draws from ``fold_in(key, step)``.
      step: steps done, int32.
      guard: what the finite guard has counted; its leaf is counted over the discriminator's parameters,
        then the generator's.
    """

    generator: Player
    discriminator: Player
    key: jax.Array
    step: jax.Array
    guard: Guard

    @property
    def params(self) -> dict[str, Params]:
        """The parameters of both."""
        return {"discriminator": self.discriminator.params, "generator": self.generator.params}

    @property
    def state(self) -> dict[str, State]:
        """The network states of both."""
        return {"discriminator": self.discriminator.state, "generator": self.generator.state}


@named("init_gan")
def init_gan(
    generator: Any, discriminator: Any, generator_optimizer: Any, discriminator_optimizer: Any, x: Any, key: Any
) -> GANState:
    """Draws the parameters of both networks; the discriminator's input has the shape of the generator's output.

    Args:
      generator: a `Layer` from x to what it makes.
      discriminator: a `Layer` from that to scores, an array or a tree of arrays.
      generator_optimizer: an ``(init, update)`` pair.
      discriminator_optimizer: another.
      x: an example of the generator's input, or its `jax.ShapeDtypeStruct`.
      key: a PRNG key or an integer seed.

    Returns:
      A `GANState` at step 0.

    Raises:
      ConfigError: no optimizer or no key.
    """
    generator, discriminator = as_layer(generator), as_layer(discriminator)
    first, second, step_key = jax.random.split(checks.key(key), 3)
    params, state = generator.init(first, x)
    made = jax.eval_shape(lambda p, s, v: generator.apply(p, s, v, train=False)[0], params, state, x)
    judging, judging_state = discriminator.init(second, made)
    return GANState(
        Player(params, state, _members.member(generator_optimizer).init(params)),
        Player(judging, judging_state, _members.member(discriminator_optimizer).init(judging)),
        step_key,
        jnp.int32(0),
        new_guard(),
    )


@named("make_gan_step")
def make_gan_step(
    generator: Any,
    discriminator: Any,
    generator_loss: Callable[[Any, Any, Any, Any], jax.Array],
    discriminator_loss: Callable[[Any, Any], jax.Array],
    generator_optimizer: Any,
    discriminator_optimizer: Any,
) -> Step:
    """Makes a step in which the discriminator learns from real and made examples, and then the generator from it.

    On a batch ``(x, real)`` the generator makes ``made`` from x, once. The discriminator takes a step on
    ``discriminator_loss(D(real), D(made))``; then the generator takes one on
    ``generator_loss(D(made), D(real), made, real)`` with the discriminator as it is now (feature matching compares the
    first two where D returns its features, a reconstruction loss the last two). Each player has its own optimizer, and
    keeps everything where its loss or its gradient is not finite.

    Args:
      generator: a `Layer` from x to what it makes.
      discriminator: a `Layer` from that to scores, an array or a tree of arrays.
      generator_loss: ``(scores of made, scores of real, made, real) -> scalar``.
      discriminator_loss: ``(scores of real, scores of made) -> scalar``.
      generator_optimizer: an ``(init, update)`` pair.
      discriminator_optimizer: another.

    Returns:
      ``step(gan_state, (x, real)) -> (gan_state, metrics)``, with "loss" (the generator's), "discriminator_loss" and
      both gradients' norms and "skipped", 1 where a player has kept everything.

    Raises:
      ConfigError: what is no network, loss or optimizer.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers, optimizers, training
      >>> G, D = layers.dense(1), layers.chain(layers.dense(8), jnp.tanh, layers.dense(1))
      >>> def hinge(real, made):
      ...     return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + made))
      >>> def fool(made_scores, real_scores, made, real):
      ...     return -jnp.mean(made_scores)
      >>> adam = optimizers.adam(0.01, b1=0.5)
      >>> step = jax.jit(training.make_gan_step(G, D, fool, hinge, adam, adam))
      >>> state = training.init_gan(G, D, adam, adam, jnp.zeros((1, 2)), 0)
      >>> state, metrics = step(state, (jnp.ones((4, 2)), jnp.full((4, 1), 3.0)))
      >>> sorted(metrics)
      ['discriminator_grad_norm', 'discriminator_loss', 'grad_norm', 'loss', 'skipped']

    Source: Goodfellow et al. 2014, arXiv 1406.2661, algorithm 1 with k = 1.
    """
    generator, discriminator = as_layer(generator), as_layer(discriminator)
    for name, f in (("generator_loss", generator_loss), ("discriminator_loss", discriminator_loss)):
        checks.function(name, f)
    generator_optimizer = _members.member(generator_optimizer)
    discriminator_optimizer = _members.member(discriminator_optimizer)

    def judge(params, state, y, key):
        return discriminator.apply(params, state, y, train=True, key=key)

    @named("make_gan_step")
    def step(gan_state, batch):
        x, real = pair(batch)
        g, d = gan_state.generator, gan_state.discriminator
        keys = jax.random.split(jax.random.fold_in(gan_state.key, gan_state.step), 4)

        # The generator runs once: its gradient is pulled back from where the discriminator has changed.
        def generate(params):
            return generator.apply(params, g.state, x, train=True, key=keys[0])

        made, pull_back, g_state = jax.vjp(generate, g.params, has_aux=True)

        def d_objective(params):
            real_scores, state = judge(params, d.state, real, keys[1])
            made_scores, state = judge(params, state, made, keys[2])
            return scalar("discriminator_loss", discriminator_loss(real_scores, made_scores)), state

        (d_value, d_state), d_grads = jax.value_and_grad(d_objective, has_aux=True)(d.params)
        judged = take_step(
            discriminator_optimizer, d_value, d_grads, d.params, d.opt_state, (d_state, d.state), guard=True,
            value=d_value, value_fn=lambda params: d_objective(params)[0],
        )  # fmt: skip

        def g_objective(made):
            made_scores, _ = judge(judged.params, judged.state, made, keys[3])
            real_scores, _ = judge(judged.params, judged.state, real, keys[3])
            value = generator_loss(made_scores, jax.lax.stop_gradient(real_scores), made, real)
            return scalar("generator_loss", value)

        g_value, of_made = jax.value_and_grad(g_objective)(made)
        (g_grads,) = pull_back(of_made)
        generated = take_step(
            generator_optimizer, g_value, g_grads, g.params, g.opt_state, (g_state, g.state), guard=True,
            value=g_value, value_fn=lambda params: g_objective(generate(params)[0]),
        )  # fmt: skip
        behind = len(jax.tree.leaves(d.params))
        leaf = jnp.where(judged.leaf >= 0, judged.leaf, jnp.where(generated.leaf >= 0, generated.leaf + behind, -1))
        skipped = judged.skipped | generated.skipped
        gan_state = GANState(
            Player(generated.params, generated.state, generated.opt_state),
            Player(judged.params, judged.state, judged.opt_state),
            gan_state.key,
            gan_state.step + 1,
            counted(gan_state.guard, ~skipped, leaf, gan_state.step),
        )
        return gan_state, {
            "loss": g_value,
            "discriminator_loss": d_value,
            "grad_norm": generated.norm,
            "discriminator_grad_norm": judged.norm,
            "skipped": skipped.astype(jnp.float32),
        }

    return step
