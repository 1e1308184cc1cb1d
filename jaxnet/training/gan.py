"""Two players: a generator and a discriminator that train each other in turn."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, DataError, named
from jaxnet.layers.layer import Layer, Params, State, as_layer, output_struct, ran
from jaxnet.layers.next_state import check_next
from jaxnet.optimizers import _members
from jaxnet.optimizers import _rates as rates
from jaxnet.optimizers.averaged import averaged
from jaxnet.training.state import Guard, LossScale, drawn, new_guard, new_scale
from jaxnet.training.step import Step, check_scalable, pair, scalar
from jaxnet.training.update import Taken, counted, rescaled, take_step, unscaled
from jaxnet.training.weighted import Weighted


class Player(NamedTuple):
    """One of the two networks of `init_gan`.

    Attributes:
      params: its parameters.
      state: its network state.
      opt_state: its optimizer's state.
    """

    params: Params
    state: State
    opt_state: Any


class GANState(NamedTuple):
    """What a step of two players reads and writes, of `init_gan`; `train` takes it in the place of a `TrainState`.

    Attributes:
      generator: a `Player`.
      discriminator: a `Player`.
      key: the run's one PRNG key; a step draws from ``fold_in(key, step)``.
      step: steps done, an int32 scalar.
      guard: what the finite guard has counted; its leaf is counted over the discriminator's parameters,
        then the generator's.
      loss_scale: a `LossScale` of both losses, or () without loss scaling.
    """

    generator: Player
    discriminator: Player
    key: jax.Array
    step: jax.Array
    guard: Guard
    loss_scale: LossScale | tuple[()] = ()

    @property
    def params(self) -> dict[str, Params]:
        """The parameters of both."""
        return {"discriminator": self.discriminator.params, "generator": self.generator.params}

    @property
    def weights(self) -> tuple[Params, State]:
        """The generator's parameters to make examples with, averaged where its optimizer averages, and its state."""
        return averaged(self.generator.opt_state, self.generator.params), self.generator.state

    @property
    def state(self) -> dict[str, State]:
        """The network states of both."""
        return {"discriminator": self.discriminator.state, "generator": self.generator.state}


@named("init_gan")
def init_gan(
    generator: Any,
    discriminator: Any,
    generator_optimizer: Any,
    discriminator_optimizer: Any,
    x: Any,
    key: Any,
    *,
    loss_scale: float | None = None,
) -> GANState:
    """Draws the parameters of both networks; the discriminator's input has the shape of the generator's output.

    Args:
      generator: a `Layer` from x to what it makes.
      discriminator: a `Layer` from that to scores, an array or a tree of arrays.
      generator_optimizer: an ``(init, update)`` pair.
      discriminator_optimizer: another.
      x: an example of the generator's input (batch, ...), or its `jax.ShapeDtypeStruct`.
      key: a PRNG key or an integer seed.
      loss_scale: the first factor on both losses, for float16 (`init`); None for none.

    Returns:
      A `GANState` at step 0.

    Raises:
      ConfigError: no network, optimizer or key, or a factor that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, optimizers, training
      >>> adam = optimizers.adam(0.01)
      >>> state = training.init_gan(layers.dense(3), layers.dense(1), adam, adam, jnp.zeros((1, 2)), 0)
      >>> state.discriminator.params["kernel"].shape
      (3, 1)
    """
    generator, discriminator = as_layer(generator, "generator"), as_layer(discriminator, "discriminator")
    first, second, step_key = jax.random.split(checks.key(key), 3)
    params, state = drawn(generator, first, x)
    made = output_struct(generator, params, state, x)
    judging, judging_state = drawn(discriminator, second, made)
    return GANState(
        Player(params, state, _members.member(generator_optimizer).init(params)),
        Player(judging, judging_state, _members.member(discriminator_optimizer).init(judging)),
        step_key,
        jnp.int32(0),
        new_guard(),
        new_scale(loss_scale),
    )


@named("make_gan_step")
def make_gan_step(
    generator: Any,
    discriminator: Any,
    generator_loss: Callable[[Any, Any, Any, Any], jax.Array],
    discriminator_loss: Callable[[Any, Any], jax.Array],
    generator_optimizer: Any,
    discriminator_optimizer: Any,
    *,
    critic_steps: int = 1,
) -> Step:
    """Makes a step in which the discriminator learns from real and made examples, and then the generator from it.

    On a batch ``(x, real)`` the generator makes ``made`` from x, once. The discriminator takes a step on
    ``discriminator_loss(D(real), D(made))``; then the generator takes one on
    ``generator_loss(D(made), D(real), made, real)`` with the discriminator as it is now (feature matching compares the
    first two where D returns its features, a reconstruction loss the last two). Each player has its own optimizer, and
    keeps everything where its loss or its gradient is not finite.

    With ``critic_steps`` n a batch is split into n parts of one size: the discriminator takes a step on each, against
    what the generator makes of it, and the generator one on the last.

    *Averages*: with `optimizers.ema` around the generator's optimizer, ``gan_state.weights`` are the averages; with
    ``train(..., weights=lambda gan_state: gan_state.weights)`` they are what is kept of the best epoch and returned.

    Args:
      generator: a `Layer` from x to what it makes.
      discriminator: a `Layer` from that to scores, an array or a tree of arrays.
      generator_loss: ``(scores of made, scores of real, made, real) -> scalar``.
      discriminator_loss: ``(scores of real, scores of made) -> scalar``.
      generator_optimizer: an ``(init, update)`` pair.
      discriminator_optimizer: another.
      critic_steps: n, the discriminator's steps for each of the generator's.

    Returns:
      ``step(gan_state, (x, real)) -> (gan_state, metrics)``, with "loss" (the generator's), "discriminator_loss", both
      gradients' norms, their learning rates where the optimizers say them, and "skipped", 1 where a player has kept
      everything; the discriminator's are means over its steps.

    Raises:
      ConfigError: what is no network, loss or optimizer; from the step, a batch with weights.
      DataError: from the step, a batch that is empty, or that ``critic_steps`` does not divide.
      ShapeError: from the step, a loss that is no scalar.
      DTypeError: from the step, a loss that is not real.

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
      ['discriminator_grad_norm', 'discriminator_learning_rate', 'discriminator_loss', 'grad_norm', 'learning_rate',
       'loss', 'skipped']

    Source: Goodfellow et al. 2014, arXiv 1406.2661, algorithm 1 with k of n.
    """
    generator, discriminator = as_layer(generator, "generator"), as_layer(discriminator, "discriminator")
    for name, f in (("generator_loss", generator_loss), ("discriminator_loss", discriminator_loss)):
        checks.function(name, f)
    generator_optimizer = _members.member(generator_optimizer)
    discriminator_optimizer = _members.member(discriminator_optimizer)

    critic_steps = checks.integer("critic_steps", critic_steps, minimum=1)

    judge, judged = _judging(discriminator, discriminator_loss, discriminator_optimizer)

    def generate(params, state, x, key):
        y, new = ran(generator.apply(params, state, x, train=True, key=key))
        check_next(generator, y, new, state)
        return y, new

    def critic(gan_state, parts, key, scale):
        """The discriminator's steps on all parts but the last; both players' states, and what each step was."""
        g = gan_state.generator

        def one(carry, numbered):
            state, d = carry
            i, (x, real) = numbered
            keys = jax.random.split(jax.random.fold_in(key, i), 4)
            made, after = generate(g.params, state, x, keys[0])
            taken, value = judged(d, made, real, keys, scale)
            state = jax.tree.map(lambda old, new: jnp.where(taken.skipped, old, new), state, after)
            return (state, Player(taken.params, taken.state, taken.opt_state)), _Step(value, *taken[3:])

        numbers = jnp.arange(critic_steps - 1)
        (state, d), steps = jax.lax.scan(one, (g.state, gan_state.discriminator), (numbers, parts))
        return g._replace(state=state), d, steps

    @named("make_gan_step")
    def step(gan_state, batch):
        x, real = pair(batch)
        if isinstance(real, Weighted):
            raise ConfigError("the losses of two players take no weights; give batches (x, real)")
        scale = None
        if gan_state.loss_scale:
            check_scalable(gan_state.params, True)
            scale = gan_state.loss_scale.value
        key = jax.random.fold_in(gan_state.key, gan_state.step)
        keys = jax.random.split(key, 4)
        g, d, firsts = gan_state.generator, gan_state.discriminator, None
        if critic_steps > 1:
            parts, (x, real) = _parts((x, real), critic_steps)
            g, d, firsts = critic(gan_state, parts, key, scale)

        # The generator runs once: its gradient is pulled back from where the discriminator has changed.
        made, pull_back, g_state = jax.vjp(lambda params: generate(params, g.state, x, keys[0]), g.params, has_aux=True)
        of_d, d_value = judged(d, made, real, keys, scale)

        def g_objective(made):
            made_scores, _ = judge(of_d.params, of_d.state, made, keys[3])
            real_scores, _ = judge(of_d.params, of_d.state, real, keys[3])
            value = generator_loss(made_scores, jax.lax.stop_gradient(real_scores), made, real)
            value = scalar("generator_loss", value)
            return _scaled(value, scale), value

        (_, g_value), of_made = jax.value_and_grad(g_objective, has_aux=True)(made)
        (g_grads,) = pull_back(of_made)
        of_g = take_step(
            generator_optimizer, g_value, unscaled(g_grads, scale), g.params, g.opt_state, (g_state, g.state),
            guard=True, value=g_value,
            value_fn=lambda params: g_objective(generate(params, g.state, x, keys[0])[0])[1],
        )  # fmt: skip
        judging = _joined(firsts, _Step(d_value, *of_d[3:]))
        after, skipped = _after(gan_state, of_g, of_d, judging)
        return after, {
            "loss": g_value,
            "discriminator_loss": judging.value,
            "grad_norm": of_g.norm,
            "discriminator_grad_norm": judging.norm,
            **rates.columns(generator_optimizer, g.opt_state, of_g.opt_state),
            **rates.columns(discriminator_optimizer, d.opt_state, of_d.opt_state, "discriminator_learning_rate"),
            "skipped": skipped.astype(jnp.float32),
        }

    return step


class _Step(NamedTuple):
    """A step of the discriminator: its loss, and as in `Taken`."""

    value: jax.Array
    skipped: jax.Array
    norm: jax.Array
    leaf: jax.Array


def _judging(discriminator: Layer, loss: Callable[[Any, Any], jax.Array], optimizer: Any) -> tuple[Any, Any]:
    """What the discriminator says of an array, and a step of it, with its loss."""

    def judge(params, state, y, key):
        scores, new = ran(discriminator.apply(params, state, y, train=True, key=key))
        check_next(discriminator, scores, new, state)
        return scores, new

    def judged(d: Player, made, real, keys, scale) -> tuple[Taken, jax.Array]:
        """A step of the discriminator, and its loss."""

        def objective(params):
            real_scores, state = judge(params, d.state, real, keys[1])
            made_scores, state = judge(params, state, made, keys[2])
            value = scalar("discriminator_loss", loss(real_scores, made_scores))
            return _scaled(value, scale), (state, value)

        (_, (state, value)), grads = jax.value_and_grad(objective, has_aux=True)(d.params)
        taken = take_step(
            optimizer, value, unscaled(grads, scale), d.params, d.opt_state, (state, d.state), guard=True,
            value=value, value_fn=lambda params: objective(params)[1][1],
        )  # fmt: skip
        return taken, value

    return judge, judged


def _after(gan_state: GANState, of_g: Taken, of_d: Taken, judging: _Step) -> tuple[GANState, jax.Array]:
    """The state after both players' steps, and whether one of them has kept everything."""
    skipped = judging.skipped | of_g.skipped
    behind = len(jax.tree.leaves(of_d.params))
    leaf = jnp.where(judging.leaf >= 0, judging.leaf, jnp.where(of_g.leaf >= 0, of_g.leaf + behind, -1))
    after = GANState(
        Player(of_g.params, of_g.state, of_g.opt_state),
        Player(of_d.params, of_d.state, of_d.opt_state),
        gan_state.key,
        gan_state.step + 1,
        counted(gan_state.guard, ~skipped, leaf, gan_state.step),
        rescaled(gan_state.loss_scale, ~skipped),
    )
    return after, skipped


def _joined(firsts: _Step | None, last: _Step) -> _Step:
    """The means of several steps, whether one was skipped, and the first leaf that was not finite."""
    if firsts is None:
        return last
    every = jax.tree.map(lambda some, one: jnp.append(some, one), firsts, last)
    leaf = every.leaf[jnp.argmax(every.leaf >= 0)]
    return _Step(jnp.mean(every.value), jnp.any(every.skipped), jnp.mean(every.norm), leaf)


def _parts(batch: Any, count: int) -> tuple[Any, Any]:
    """A batch in parts of one size: all but the last, stacked, and the last."""
    size, rest = divmod(jax.tree.leaves(batch)[0].shape[0], count)
    if rest:
        raise DataError(f"critic_steps={count} must divide the batch of {size * count + rest}, a part a step")
    parts = jax.tree.map(lambda leaf: leaf.reshape(count, size, *leaf.shape[1:]), batch)
    return jax.tree.map(lambda leaf: leaf[:-1], parts), jax.tree.map(lambda leaf: leaf[-1], parts)


def _scaled(value: jax.Array, scale: jax.Array | None) -> jax.Array:
    return value if scale is None else value * scale.astype(value.dtype)
