"""A recipe in jaxnet: all steps up to the next evaluation are one dispatch, with everything on the device."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.speedrun.batches import Plan
from benchmarks.speedrun.contestant import Contestant
from benchmarks.speedrun.images import DEVIATION, MEAN, Images
from benchmarks.speedrun.recipes import (
    EDGE,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    MaxPool,
    Parts,
    Patches,
    Recipe,
    Relu,
    Residual,
    Scale,
)
from jaxnet import activations, layers, losses, optimizers


def network(parts: Parts) -> layers.Layer:
    """The network of a recipe."""

    def layer(part):
        if isinstance(part, Conv):
            size = (part.size, part.size)
            return layers.conv(part.filters, size, strides=part.stride, padding=part.padding, bias=False)
        if isinstance(part, Patches):
            return functools.partial(patches, size=part.size)
        if isinstance(part, MaxPool):
            return layers.max_pool((part.size,) * 2)
        if isinstance(part, Dense):
            return layers.dense(part.units)
        if isinstance(part, Residual):
            return layers.residual(network(part.branch))
        if isinstance(part, Scale):
            return lambda x: x * jnp.asarray(part.factor, x.dtype)
        return {BatchNorm: layers.batch_norm, Relu: lambda: activations.relu, Flatten: layers.flatten}[type(part)]()

    return layers.chain(*map(layer, parts))


def patches(x: jax.Array, size: int) -> jax.Array:
    """(batch, 28, 28, 1) to (batch, 28 / size, 28 / size, size^2)."""
    n = EDGE // size
    return x.reshape(-1, n, size, n, size).swapaxes(2, 3).reshape(-1, n, n, size**2)


def initial(recipe: Recipe, seed: int) -> tuple[Any, Any]:
    """``(params, state)`` of the network at the start."""
    return _initial(recipe.parts)(jax.random.key(seed))


@functools.cache
def _initial(parts: Parts) -> Any:
    return jax.jit(lambda key: network(parts).init(key, jax.ShapeDtypeStruct((1, EDGE, EDGE, 1), jnp.float32)))


def rule(recipe: Recipe, rate: Any) -> optimizers.Optimizer:
    """The optimizer, with the rate of one step."""
    if recipe.optimizer == "adam":
        found = optimizers.adam(rate)
    else:
        found = optimizers.sgd(rate, recipe.momentum, nesterov=True)
    if recipe.decay:
        found = optimizers.chain(optimizers.add_decayed_weights(recipe.decay), found)
    return optimizers.ema(found, recipe.average) if recipe.average else found


def crops(images: jax.Array, rows: jax.Array, shift: jax.Array, flip: jax.Array) -> jax.Array:
    """Images of the padded data set, cut out where the plan says, mirrored and normalized: (batch, 28, 28, 1)."""

    def cut(row, at):
        return lax.dynamic_slice(images, (row, at[0], at[1]), (1, EDGE, EDGE))[0]

    x = jax.vmap(cut)(rows, shift)
    return normalized(jnp.where(flip[:, None, None], x[:, :, ::-1], x))


def normalized(x: jax.Array) -> jax.Array:
    """Bytes to numbers of mean 0 and deviation 1, with an axis for the one channel."""
    return (x.astype(jnp.float32)[..., None] - MEAN) / DEVIATION


def contestant(
    recipe: Recipe, images: Images, *, dtype: str = "float32", raveled: bool = False, together: bool = True
) -> Contestant:
    """jaxnet.

    Args:
      recipe: what to train.
      images: the data set, which goes to the device here.
      dtype: what the layers compute in; "bfloat16" keeps float32 parameters.
      raveled: whether the parameters are one vector.
      together: whether all steps up to the next evaluation are one dispatch, or each is one.
    """
    net = network(recipe.parts)
    net = layers.raveled(net) if raveled else net
    net = layers.mixed_precision(net) if dtype == "bfloat16" else net
    padding = ((0, 0), (recipe.shift, recipe.shift), (recipe.shift, recipe.shift))
    train = jax.device_put((np.pad(images.train, padding), images.train_labels))
    test = jax.device_put((images.test, images.test_labels))

    def step(carry, given, data):
        params, state, opt_state = carry
        moved = recipe.shift or recipe.flip
        x = crops(data[0], given.rows, given.shift, given.flip) if moved else normalized(data[0][given.rows])
        labels = data[1][given.rows]

        def loss(params):
            logits, new = net.apply(params, state, x, train=True)
            return losses.softmax_cross_entropy(logits, labels, label_smoothing=recipe.smoothing), new

        (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = rule(recipe, given.rate).update(gradients, opt_state, params)
        return (optimizers.apply_updates(params, updates), state, opt_state), value

    @functools.partial(jax.jit, donate_argnums=0)
    def steps(carry, plan, data):
        return lax.scan(functools.partial(step, data=data), carry, plan)

    @jax.jit
    def right(carry, x, labels):
        params, state, opt_state = carry
        params = optimizers.averaged(opt_state, params)

        def some(given):
            x, labels = given
            views = [x, x[:, :, ::-1]][: recipe.views]
            logits = jnp.stack([net.apply(params, state, normalized(view), train=False)[0] for view in views])
            return jnp.sum(logits.sum(0).argmax(-1) == labels)

        parts = max(1, len(x) // 1000)
        return jnp.sum(lax.map(some, (x.reshape(parts, -1, EDGE, EDGE), labels.reshape(parts, -1))))

    @jax.jit
    def start(params, state):
        params = optimizers.ravel(params) if raveled else params
        return params, state, rule(recipe, 0.0).init(params)

    held: dict[str, Any] = {}

    def begin(params, state):
        held["carry"] = start(*jax.tree.map(jnp.array, (params, state)))

    def advance(plan: Plan):
        pieces = [plan] if together else [Plan(*(a[i : i + 1] for a in plan)) for i in range(len(plan.rate))]
        held["losses"] = []
        for piece in pieces:
            held["carry"], some = steps(held["carry"], piece, train)
            held["losses"].append(some)

    def weights():
        params = held["carry"][0]
        return params.unravel() if raveled else params, held["carry"][1]

    return Contestant(
        begin,
        advance,
        lambda: jax.block_until_ready(held["carry"]),
        lambda: float(right(held["carry"], *test)) / len(test[1]),
        lambda: np.concatenate(held["losses"]),
        weights,
    )
