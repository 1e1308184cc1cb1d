"""What training carries from step to step, as one pytree."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _drawing as drawing
from jaxnet import _words as words
from jaxnet.errors import ConfigError, DTypeError, named
from jaxnet.layers.layer import Layer, Params, State, as_layer, entered, initialized
from jaxnet.optimizers import _members
from jaxnet.paths import Which
from jaxnet.training.freezing import learned

MOST_BYTES_KEPT = 2**24
"""Up to this size of the state, dispatches keep the one they began with, and run without the guard."""


MOST_BYTES_READ = 2**22
"""Up to this size of the parameters, NumPy has read them on a CPU long before a program that does so is compiled."""


class Guard(NamedTuple):
    """What the finite guard of `make_step` has counted, int32 scalars.

    Attributes:
      in_row: steps skipped in a row up to now.
      total: steps skipped in all.
      leaf: of the last step skipped, the first gradient that was not finite, counted over the leaves of the
        parameters; -1 if only the loss was not finite, or none was skipped yet.
      step: the last step skipped, -1 if none was.
    """

    in_row: jax.Array
    total: jax.Array
    leaf: jax.Array
    step: jax.Array


class LossScale(NamedTuple):
    """The factor on the loss that keeps float16 gradients from vanishing, of `init` with ``loss_scale``.

    Attributes:
      value: the factor, a float32 scalar, as a rule a power of two.
      good_steps: finite steps since it last changed, an int32 scalar.
    """

    value: jax.Array
    good_steps: jax.Array


class TrainState(NamedTuple):
    """Everything a training step reads and writes: a pytree of arrays to jit, scan, vmap, shard or save; of `init`.

    Attributes:
      params: what the optimizer updates.
      state: the network's state (batch norm's averages).
      opt_state: the optimizer's state.
      key: the run's one PRNG key; a step draws from ``fold_in(key, step)``.
      step: steps done, an int32 scalar.
      guard: what the finite guard has counted.
      loss_scale: a `LossScale`, or () without loss scaling.
    """

    params: Params
    state: State
    opt_state: Any
    key: jax.Array
    step: jax.Array
    guard: Guard
    loss_scale: LossScale | tuple[()]


@named("training.init")
def init(
    net: Any, optimizer: Any, x: Any, key: Any, *, loss_scale: float | None = None, freeze: Which | None = None
) -> TrainState:
    """Draws the parameters of a network and makes the state that `make_step`'s function takes.

    Args:
      net: a `Layer`.
      optimizer: an ``(init, update)`` pair, ours or optax's.
      x: an example input (batch, ...), or its `jax.ShapeDtypeStruct`.
      key: a PRNG key or an integer seed; the parameters are drawn from ``split(key)[0]``, every step from
        ``split(key)[1]``.
      loss_scale: the first factor on the loss, for float16 (2.0**15 is usual); None for none.
      freeze: which leaves of the parameters do not learn, as of `make_step`: the optimizer's state is for the others.

    Returns:
      A `TrainState` at step 0.

    Raises:
      ConfigError: no network, optimizer or key, a factor that is not positive, or a ``freeze`` that chooses no leaf, or
        all.
      DTypeError: the network's init gives a parameter that is no array.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, optimizers, training
      >>> train_state = training.init(layers.dense(2), optimizers.adam(1e-3), jnp.ones((1, 3)), 0)
      >>> train_state.params["kernel"].shape, int(train_state.step)
      ((3, 2), 0)
    """
    net = as_layer(net, "net")
    optimizer = _members.member(optimizer)
    init_key, step_key = drawing.split(checks.key(key), 2)
    params, state = drawn(net, init_key, x)
    return from_params(optimizer, params, state, step_key, loss_scale=loss_scale, freeze=freeze)


def drawn(net: Layer, key: jax.Array, x: Any) -> tuple[Params, State]:
    """What a network's init gives, of which every leaf must be an array."""
    params, state = initialized(net.init(key, x))
    for which, tree in (("params", params), ("state", state)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
                place, hint = f"{which}{jax.tree_util.keystr(path)}", f"make it one, jnp.asarray({leaf!r}, x.dtype)"
                raise DTypeError(f"init gives {type(leaf).__name__} at {place}, no array; {hint}")
    return params, state


@named("pretrained")
def pretrained(net: Any, params: Params, state: State) -> Layer:
    """The same network, that begins with weights which there are instead of drawing them.

    Args:
      net: a `Layer` from x (batch, ...) to a prediction.
      params: its parameters, of `load_best`, of an error's ``train_state``, of PyTorch.
      state: its state.

    Returns:
      A `Layer` whose init gives copies of them, to `fit`, `sweep` or `init`.

    Raises:
      ConfigError: what is no network.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, training
      >>> net = training.pretrained(layers.dense(1), {"kernel": jnp.ones((3, 1)), "bias": jnp.zeros(1)}, ())
      >>> params, state = net.init(0, jnp.ones((1, 3)))
      >>> params["kernel"].sum()
      Array(3., dtype=float32)
    """
    net = as_layer(net, "net")
    return net._replace(init=entered(net.name, lambda key, x: copied((params, state)), "init"))


@named("training.init")
def from_params(
    optimizer: Any, params: Params, state: State, key: jax.Array, *, loss_scale: float | None = None,
    freeze: Which | None = None,
) -> TrainState:  # fmt: skip
    """A `TrainState` at step 0 with parameters that exist already."""
    scale = new_scale(loss_scale)
    return TrainState(params, state, optimizer.init(learned(params, freeze)), key, jnp.int32(0), new_guard(), scale)


def no_train_state(value: Any) -> str:
    """Of what is no `TrainState`: how to get one."""
    two = isinstance(value, tuple) and value and isinstance(value[0], TrainState)
    hint = "a step returns two things, train_state, measured = step(...)" if two else "make one with training.init"
    return f"got {type(value).__name__}; {hint}"


def refuse_exchanged(params: Any, x: Any) -> None:
    """Refuses a state without arrays in the place of x."""
    if isinstance(x, tuple) and not jax.tree.leaves(x) and jax.tree.leaves(params):
        raise ConfigError(f"x must be arrays, got {words.came(x)}; the order is (net, params, state, x)")


def new_guard() -> Guard:
    """The counts before the first step."""
    return Guard(jnp.int32(0), jnp.int32(0), jnp.int32(-1), jnp.int32(-1))


def new_scale(factor: float | None) -> LossScale | tuple[()]:
    """The loss scale before the first step; () for None."""
    if factor is None:
        return ()
    return LossScale(jnp.float32(checks.number("loss_scale", factor, low=0, open_low=True)), jnp.int32(0))


@jax.jit
def copied(tree: Any) -> Any:
    """The same arrays in memory of their own, so that either can be donated; one program for the whole tree."""
    return jax.tree.map(jnp.copy, tree)


def sound(train_state: Any) -> bool:
    """Whether the parameters are finite; what is not stays so, whatever the steps that follow."""
    params = getattr(train_state, "params", ())
    if nbytes(params) > MOST_BYTES_READ or not all(_on_this_cpu(leaf) for leaf in jax.tree.leaves(params)):
        return bool(all_finite(params))
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.inexact))


def _on_this_cpu(leaf: Any) -> bool:
    return leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices())


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether no array of a tree holds Inf or NaN, a bool scalar."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size]
    # 0 times a finite number is 0; one pass that only reads, with no array of flags.
    sums = [jnp.isfinite(jnp.sum(leaf * jnp.zeros((), leaf.dtype))) for leaf in leaves]
    return jnp.all(jnp.stack(sums)) if sums else jnp.bool(True)


def is_key(leaf: Any) -> bool:
    """Whether it is one of JAX's typed PRNG keys, or an array of them."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def checksum(tree: Any) -> int:
    """The CRC-32 of a tree's arrays, with their places, dtypes and shapes."""
    found = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found = zlib.crc32(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode(), found)
        host = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf, order="C")
        found = zlib.crc32(host.reshape(-1).view(np.uint8).data, found)
    return found


def nbytes(tree: Any) -> int:
    """The size of a tree's arrays in bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
