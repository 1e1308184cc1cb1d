"""Tests for layers of your own: the contract that every layer of jaxnet keeps, as one call."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet.errors import named
from jaxnet.layers.layer import Layer, as_layer


@named("check_layer")
def check_layer(
    layer: Layer | Callable[..., Any],
    x: Any,
    *,
    seed: int = 0,
    needs_key: bool = False,
    same_dtype: bool = True,
    gradients: bool = True,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> None:
    """Puts a layer through the contract of `layers.Layer`, in training and in evaluation.

    - ``init`` needs only x's shape and dtype, traces, and is a function of its key;
    - ``apply`` returns two things, the state in the structure, shapes and dtypes it came in;
    - ``jit`` changes nothing, and the second step compiles nothing new;
    - the same key gives the same output, and evaluation needs none;
    - in evaluation an example's output does not depend on the others in its batch;
    - ``vmap`` over another axis is a loop;
    - parameters may come back from a file, as NumPy arrays;
    - first and second derivatives, forward and reverse, agree with finite differences in float64, of all that is
      floating point or complex in the output with respect to all that is in params and input.

    Args:
      layer: the layer, or a bare callable.
      x: an example input, an array or a pytree of arrays, with at least two examples on each one's first axis; avoid
        values at kinks.
      seed: where all random numbers come from.
      needs_key: whether training draws random numbers.
      same_dtype: whether the output must have x's dtype (not so under mixed precision); of an input of several arrays,
        what is floating point in the output one of the floating-point dtypes in it.
      gradients: whether to check derivatives; they must then be defined in float64.
      rtol: relative tolerance where two ways of computing the same are compared.
      atol: absolute tolerance there.

    Raises:
      AssertionError: a rule is broken; the message says which and how.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, testing
      >>> scale = layers.stateless(lambda key, x: {"scale": jnp.ones((), x.dtype)}, lambda p, x: p["scale"] * x)
      >>> testing.check_layer(scale, jnp.linspace(-1.0, 1.0, 6).reshape(3, 2))
    """
    layer = as_layer(layer)
    struct = checks.structs(x)
    x = jax.tree.map(lambda leaf: checks.array("x", leaf), x)
    key = jax.random.key(seed)
    examples = {leaf.shape[:1] for leaf in jax.tree.leaves(x)}
    if len(examples) > 1 or min(examples) < (2,):
        raise AssertionError(
            f"check_layer: x must hold at least two examples on its first axis (each array as many), "
            f"got {checks.describe(struct)}"
        )
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(x) if _is_floating(leaf)}

    params, state = layer.init(key, x)
    again = layer.init(key, x)
    _equal("init is a function of its key", again, (params, state))
    _equal("init needs only a shape", layer.init(key, struct), (params, state))
    traced = jax.eval_shape(layer.init, key, struct)
    _same_structs("init traces", traced, (params, state))

    for train in (False, True):
        mode = "training" if train else "evaluation"
        step_key = jax.random.fold_in(key, 1) if train and needs_key else None

        def apply(params, state, x, train=train, step_key=step_key):
            return layer.apply(params, state, x, train=train, key=step_key)

        result = apply(params, state, x)
        if not isinstance(result, tuple) or len(result) != 2:
            raise AssertionError(f"{layer.name}: apply must return (y, state), got {type(result).__name__}")
        y, new_state = result
        _same_structs(f"{mode} keeps the state's structure", new_state, state)
        for output in jax.tree.leaves(y):
            judged = _is_floating(output) or (isinstance(x, jax.Array) and dtypes)
            if same_dtype and dtypes and judged and output.dtype not in dtypes:
                raise AssertionError(
                    f"{layer.name}: {mode} turns {' and '.join(sorted(d.name for d in dtypes))} into {output.dtype}"
                )
            if getattr(output, "weak_type", False):
                raise AssertionError(
                    f"{layer.name}: {mode} returns a weakly typed array, which compiles the step twice"
                )
        _equal(f"{mode} is a function of its arguments", apply(params, state, x), result)

        traces = []

        def counted(params, state, x, apply=apply, traces=traces):
            traces.append(None)
            return apply(params, state, x)

        jitted = jax.jit(counted)
        _close(f"jit changes nothing in {mode}", jitted(params, state, x), result, rtol, atol)
        jitted(params, jitted(params, state, x)[1], x)
        if len(traces) != 1:
            raise AssertionError(f"{layer.name}: {mode} compiled {len(traces)} times for one shape of input")

        several = [x, jax.tree.map(_changed, x), jax.tree.map(lambda leaf: leaf[::-1], x)]
        stacked = jax.tree.map(_stacked, *several)
        expected = jax.tree.map(_stacked, *(apply(params, state, value) for value in several))
        batched = jax.jit(jax.vmap(lambda value, apply=apply: apply(params, state, value)))(stacked)
        _close(f"vmap is a loop in {mode}", batched, expected, rtol, atol)

        loaded = apply(jax.tree.map(np.asarray, params), jax.tree.map(np.asarray, state), x)
        _close(f"{mode} takes NumPy parameters", loaded, result, rtol, atol)
        if gradients:
            _check_gradients(layer, params, state, x, train, seed if step_key is not None else None)

    y, _ = layer.apply(params, state, x, train=False)
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], x) for i in range(min(examples)[0])]
    alone = [layer.apply(params, state, row, train=False)[0] for row in rows]
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *alone)
    _close("in evaluation examples are independent", together, y, rtol, atol)


def _check_gradients(layer: Layer, params: Any, state: Any, x: Any, train: bool, seed: int | None) -> None:
    from jax.test_util import check_grads  # takes as long to import as all of jaxnet

    with jax.enable_x64(True):
        exact = jax.tree.map(_to_float64, (params, state, x))
        key = None if seed is None else jax.random.fold_in(jax.random.key(seed), 1)

        leaves, structure = jax.tree.flatten((exact[0], exact[2]))
        moving = [_real(leaf) for leaf in leaves if _is_inexact(leaf)]

        @jax.jit  # compiled whole, and once
        def f(moving):
            given = iter(moving)
            parts = [_as_it_was(next(given), leaf) if _is_inexact(leaf) else leaf for leaf in leaves]
            params, x = structure.unflatten(parts)
            y = layer.apply(params, exact[1], x, train=train, key=key)[0]
            return [_real(leaf) for leaf in jax.tree.leaves(y) if _is_inexact(leaf)]

        if not moving or not jax.eval_shape(f, moving):
            return
        try:
            check_grads(f, (moving,), order=2, modes=("fwd", "rev"), atol=1e-4, rtol=1e-4, eps=1e-5)
        except AssertionError as error:
            mode = "training" if train else "evaluation"
            raise AssertionError(
                f"{layer.name}: derivatives in {mode} disagree with finite differences: {error}"
            ) from error


def _to_float64(leaf: Any) -> Any:
    if not _is_floating(leaf):
        return jnp.asarray(np.asarray(leaf), jnp.complex128) if _is_inexact(leaf) else leaf
    return jnp.asarray(np.asarray(leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4 else leaf), jnp.float64)


def _is_floating(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _is_inexact(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _real(leaf: jax.Array) -> jax.Array:
    """The leaf, or if it is complex, its real and imaginary parts, along a new first axis."""
    return leaf if _is_floating(leaf) else jnp.stack([leaf.real, leaf.imag])


def _as_it_was(parts: jax.Array, leaf: jax.Array) -> jax.Array:
    return parts if _is_floating(leaf) else jax.lax.complex(parts[0], parts[1])


def _changed(leaf: Any) -> Any:
    """Other numbers of the same kind: of tokens, masks and keys there are no others, but in another order."""
    return -leaf if _is_inexact(leaf) else jnp.roll(leaf, 1, 0)


def _stacked(*leaves: Any) -> Any:
    return jnp.stack(leaves)


def _on_host(leaf: Any) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf, np.complex128 if jnp.iscomplexobj(leaf) else np.float64)


def _same_structs(rule: str, got: Any, wanted: Any) -> None:
    if jax.tree.structure(got) != jax.tree.structure(wanted):
        raise AssertionError(f"{rule}: got {jax.tree.structure(got)}, wanted {jax.tree.structure(wanted)}")
    for (path, g), w in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        if (g.shape, g.dtype) != (w.shape, w.dtype):
            place = jax.tree_util.keystr(path)
            raise AssertionError(f"{rule}: leaf {place} is {g.dtype}{g.shape}, wanted {w.dtype}{w.shape}")


def _equal(rule: str, got: Any, wanted: Any) -> None:
    _close(rule, got, wanted, 0.0, 0.0)


def _close(rule: str, got: Any, wanted: Any, rtol: float, atol: float) -> None:
    _same_structs(rule, got, wanted)
    for (path, g), w in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(
            _on_host(g),
            _on_host(w),
            rtol,
            atol,
            err_msg=f"{rule}{jax.tree_util.keystr(path)}",
        )
