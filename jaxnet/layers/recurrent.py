"""Recurrence: what every layer that goes along a sequence repeats, and the one around a cell of your own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet import _checks as checks
from jaxnet import _drawing as drawing
from jaxnet import _words as words
from jaxnet._made import made
from jaxnet._mesh import spread
from jaxnet.errors import ConfigError, DTypeError, ShapeError
from jaxnet.layers.layer import Layer, Params, Stream, layer

DIRECTIONS = ("forward", "backward", "both")


class Cell(NamedTuple):
    """What a recurrent layer does at one step, for `rnn`: a pair of pure functions.

    Attributes:
      init: ``(key, x) -> (params, carry)``, where x is the `jax.ShapeDtypeStruct` of one step, (batch, features). Of
        the carry, a pytree of arrays that each begin with the batch, only shapes and dtypes count: it starts at 0.
      step: ``(params, carry, x) -> (carry, y)``.
      inputs: ``(params, x) -> (params, x)`` of the whole sequence, (time, batch, features): what of a step's work needs
        no carry, done for all steps at once, which is faster; ``step`` gets its results, x one step at a time.
      torch: how PyTorch keeps the arrays in params, as in `Layer`.

    Example: the leaky integrator h_t = 0.9 h_{t-1} + x_t.
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> def step(params, h, x):
      ...     h = 0.9 * h + x
      ...     return h, h
      >>> leaky = layers.rnn(layers.Cell(lambda key, x: ((), x), step))
      >>> leaky.apply((), (), jnp.ones((1, 3, 1)), train=False)[0].ravel()
      Array([1.  , 1.9 , 2.71], dtype=float32)
    """

    init: Callable[[Any, Any], tuple[Params, Any]]
    step: Callable[[Params, Any, Any], tuple[Any, Any]]
    inputs: Callable[[Params, Any], Any] | None = None
    torch: tuple[tuple[str, str, Callable[[Any], Any] | None], ...] = ()


@made
def rnn(cell: Cell, *, direction: str = "forward", carry: bool = False) -> Layer:
    """Applies a cell step by step, carry_t, y_t = step(carry_{t-1}, x_t), from a carry of zeros.

    An input ``(x, mask)`` has sequences of several lengths: where the boolean mask (batch, time) is False there is
    nothing; the carry stays as it was, and y is 0. The mask is handed on: the output is ``(y, mask)``.

    With ``carry=True`` the carry is an entry of the input and, after the last step, of the output: ``(x, carry)`` gives
    ``(y, carry)``, and ``(x, mask, carry)`` gives ``(y, mask, carry)``. So a sequence starts from what another ended
    with, and the last state of sequences of several lengths is at hand; without a mask it is also ``y[:, -1]``.

    Args:
      cell: what is done at a step: `elman`, or a `Cell` of your own.
      direction: "forward"; "backward", from the last step to the first; or "both", two cells with params of their own
        whose outputs are concatenated along the last axis. Both carries are then the pair (forward, backward).
      carry: whether the carry is part of input and output.

    Returns:
      A layer from (batch, time, features) to (batch, time, ...) with the cell's params, of both directions a dict of
      ``forward`` and ``backward``.

    Raises:
      ConfigError: an unknown ``direction``, or a cell that is none.
      ShapeError: the input's rank, a mask or a carry that does not fit, or a step that changes its carry.
      DTypeError: the input's dtype, or a mask that is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> net = layers.chain(layers.rnn(layers.elman(8)), layers.rnn(layers.elman(8), direction="both"))
      >>> x, mask = jnp.ones((2, 5, 3)), jnp.arange(5)[None] < jnp.array([[5], [2]])
      >>> params, state = net.init(0, (x, mask))
      >>> y, mask = net.apply(params, state, (x, mask), train=False)[0]
      >>> y.shape, float(jnp.abs(y[1, 2:]).max())
      ((2, 5, 16), 0.0)

    Source: Elman 1990, Cognitive Science 14(2).
    """
    if not isinstance(cell, Cell):
        raise ConfigError(
            f"cell must be a layers.Cell, got {words.came(cell)}; layers.elman(units) is one, of your own it is "
            f"layers.Cell(init, step)"
        )
    checks.function("init", cell.init)
    checks.function("step", cell.step)

    def run(params, carry, x, mask, reverse):
        if cell.inputs is not None:
            params, x = cell.inputs(params, x)
        carry = jax.tree.map(lambda leaf: spread(leaf, *jax.tree.leaves((params, carry, x, mask))), carry)

        def step(carry, now):
            x, kept = now
            new, y = cell.step(params, carry, x)
            if _structs(new) != _structs(carry):
                raise ShapeError(
                    f"the step turns its carry {checks.describe(carry)} into {checks.describe(new)}; it must keep the "
                    f"shapes and dtypes that the cell's init gave"
                )
            if kept is not None:
                new = jax.tree.map(lambda new, old: jnp.where(_like(kept, new), new, old), new, carry)
            return new, y

        return lax.scan(step, carry, (x, mask), reverse=reverse)

    def begin(x):
        return jax.eval_shape(lambda key, x: cell.init(key, x)[1], jax.random.key(0), x)

    def draw(key, x):
        return cell.init(key, x)[0]

    return recurrent("rnn", draw, begin, run, direction=direction, carry=carry, torch=cell.torch)


def recurrent(
    name: str,
    draw: Callable[[Any, Any], Params],
    begin: Callable[[Any], Any],
    run: Callable[..., tuple[Any, jax.Array]],
    *,
    direction: str,
    carry: bool,
    torch: tuple[Any, ...] = (),
) -> Layer:
    """A layer along a sequence.

    Args:
      name: what errors and tables call it.
      draw: ``(key, x) -> params``, where x is the struct of one step.
      begin: ``x -> carry``, of the same, as structs.
      run: ``(params, carry, x, mask, reverse) -> (carry, y)`` with x (time, batch, features), which is 0 where the mask
        is False, the mask (time, batch) or None, and y (time, batch, ...), which need not be masked.
      direction: as in `rnn`.
      carry: as in `rnn`.
      torch: how PyTorch keeps the arrays of one direction.
    """
    checks.choice("direction", direction, DIRECTIONS)
    checks.flag("carry", carry)
    ways = ("forward", "backward") if direction == "both" else (direction,)
    both = len(ways) > 1

    def start(x):
        """The carry of zeros, each way."""
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), begin(_one_step(x)))
        return (zeros, zeros) if both else zeros

    def initialize(key, x):
        x = _entries(x, carry, start)[0]
        keys = drawing.split(checks.key(key), len(ways))
        drawn = [draw(key, _one_step(x)) for key in keys]
        return (dict(zip(ways, drawn, strict=True)) if both else drawn[0]), ()

    def along(params, x, mask, first):
        """The output, and what is carried after the last step in the dtype that `start` gives."""
        if both and (not isinstance(params, dict) or params.keys() != set(ways)):
            raise ConfigError("params must be a dict of forward and backward; pass what this layer's init returned")
        if mask is not None:
            x = jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))
        now = (jnp.swapaxes(x, 0, 1), None if mask is None else mask.T)
        if both:
            runs = [run(params[way], first[i], *now, way == "backward") for i, way in enumerate(ways)]
            last, y = tuple(last for last, _ in runs), jnp.concatenate([y for _, y in runs], -1)
        else:
            last, y = run(params, first, *now, direction == "backward")
        y = jnp.swapaxes(y.astype(x.dtype), 0, 1)
        return last, y if mask is None else jnp.where(_like(mask, y), y, jnp.zeros((), y.dtype))

    def apply(params, state, entries, *, train, key):
        del train, key
        checks.nothing("state", state)
        x, mask, given = _entries(entries, carry, start)
        zeros = start(x)
        given = given if carry else zeros
        first = jax.tree.map(lambda leaf, zero: jnp.asarray(leaf, zero.dtype), given, zeros)
        last, y = along(params, x, mask, first)
        last = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), last, given)
        y = (y, *entries[1 : len(entries) - carry], *(last,) * carry) if isinstance(entries, tuple) else y
        return y, state

    def step(params, state, memory, entries):
        x, mask, _ = _entries(entries, False, start)
        _fits(memory, start, x)
        memory, y = along(params, x, mask, memory)
        return (y, *entries[1:]) if isinstance(entries, tuple) else y, memory

    if direction != "forward":
        stream = f"it reads the sequence from its end (direction={direction!r}); direction='forward' does not"
    elif carry:
        stream = "what it remembers is in its input and output (carry=True) already; carry=False has it remembered"
    else:
        stream = Stream(lambda params, state, x, capacity: start(_entries(x, False, start)[0]), step)
    return layer(name, initialize, apply, torch=_each_way(torch) if both else torch, stream=stream)


def _one_step(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((x.shape[0], x.shape[2]), x.dtype)


def _entries(x: Any, carry: bool, start: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """x, its mask or None, and the carry or None, checked."""
    most = 2 + carry
    if carry and not isinstance(x, tuple):
        raise DTypeError("with carry=True the input is a tuple, (x, carry) or (x, mask, carry), got one array")
    entries = x if isinstance(x, tuple) else (x,)
    if not 1 + carry <= len(entries) <= most:
        wanted = "(x, carry) or (x, mask, carry)" if carry else "x or (x, mask)"
        raise DTypeError(f"the input must be {wanted}, got {checks.describe(x)}")
    given = entries[-1] if carry else None
    x, *masks = entries[: len(entries) - carry]
    x = checks.floating_struct(x) if isinstance(x, jax.ShapeDtypeStruct) else checks.floating("x", x)
    checks.rank("x", x, 3, "(batch, time, features)")
    if not x.shape[2]:
        raise ShapeError(f"x must have at least one feature, got shape {x.shape}")
    mask = masks[0] if masks else None
    if mask is not None:
        mask = mask if isinstance(mask, jax.ShapeDtypeStruct) else checks.array("the mask", mask)
        if mask.dtype != jnp.bool_:
            raise DTypeError(f"the mask must be boolean, True for what is there, got {mask.dtype}")
        if mask.shape != x.shape[:2]:
            raise ShapeError(f"the mask must have the shape (batch, time) = {x.shape[:2]}, got {mask.shape}")
    if carry:
        _fits(given, start, x)
    return x, mask, given


def _fits(carry: Any, start: Callable[..., Any], x: Any) -> None:
    wanted = jax.eval_shape(start, x)
    if _shapes(carry) != _shapes(wanted):
        raise ShapeError(
            f"the carry must be {checks.describe(wanted)} for the input {x.shape}, got {checks.describe(carry)}; a "
            f"sequence goes on with as many examples as it began with"
        )
    for leaf, like in zip(jax.tree.leaves(carry), jax.tree.leaves(wanted), strict=True):
        if jnp.issubdtype(like.dtype, jnp.floating) and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise DTypeError(f"the carry must be {checks.describe(wanted)}, got {checks.describe(carry)}; give floats")


def _each_way(torch: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        (f"{way}/{leaf}", name + suffix, f)
        for way, suffix in (("forward", ""), ("backward", "_reverse"))
        for leaf, name, f in torch
    )


def _like(mask: jax.Array, y: jax.Array) -> jax.Array:
    return mask.reshape(*mask.shape, *(1,) * (y.ndim - mask.ndim))


def _shapes(tree: Any) -> Any:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)], jax.tree.structure(tree)


def _structs(tree: Any) -> Any:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)], jax.tree.structure(tree)
