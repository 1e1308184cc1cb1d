"""Tests for layers of your own: the contract that every layer of jaxnet keeps, as one call."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet.errors import named
from jaxnet.layers.layer import Layer, as_layer
from jaxnet.layers.protocol import refuse_swapped

__all__ = ["check_layer"]


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
      x: an example input, an array or a pytree of arrays, with at least two examples on each one's first axis,
        (batch, ...); avoid values at kinks.
      seed: where all random numbers come from.
      needs_key: whether training draws random numbers.
      same_dtype: whether the output must have x's dtype (not so under mixed precision); of an input of several arrays,
        what is floating point in the output one of the floating-point dtypes in it.
      gradients: whether to check derivatives; they must then be defined in float64.
      rtol: relative tolerance where two ways of computing the same are compared.
      atol: absolute tolerance there.

    Raises:
      AssertionError: a rule is broken; the message says which and how.
      DTypeError: x is no array.

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
    numbers = jax.tree.map(_as_numpy, x)  # whose slices and joints need no program

    params, state = layer.init(key, x)
    again = layer.init(key, x)
    _equal("init is a function of its key", again, (params, state))
    _equal("init needs only a shape", layer.init(key, struct), (params, state))
    traced = jax.eval_shape(layer.init, key, struct)
    _same_structs("init traces", traced, (params, state))

    evaluate: Any = None
    evaluated = ""
    for train in (False, True):
        mode = "training" if train else "evaluation"
        step_key = jax.random.fold_in(key, 1) if train and needs_key else None

        def apply(params, state, x, train=train, step_key=step_key):
            return layer.apply(params, state, x, train=train, key=step_key)

        result = _with_a_key(layer, lambda: apply(params, state, x), (params, state, x), key, train and not needs_key)
        if not isinstance(result, tuple) or len(result) != 2:
            raise AssertionError(f"{layer.name}: apply must return (y, state), got {type(result).__name__}")
        y, new_state = result
        refuse_swapped(y, new_state, state)
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
        loaded = apply(jax.tree.map(np.asarray, params), jax.tree.map(np.asarray, state), x)
        _close(f"{mode} takes NumPy parameters", loaded, result, rtol, atol)
        traced = jax.make_jaxpr(apply)(params, state, x)
        program = "" if traced.consts else str(traced)  # which says nothing of what is in them
        if train and program and program == evaluated:  # what follows is of programs, and would be of the same again
            continue

        several = [x, jax.tree.map(_changed, numbers), jax.tree.map(lambda leaf: leaf[::-1], numbers)]
        stacked = jax.tree.map(_stacked, *several)
        expected = jax.tree.map(_stacked, *(jitted(params, state, value) for value in several))
        batched = jax.jit(jax.vmap(lambda value, apply=apply: apply(params, state, value)))(stacked)
        _close(f"vmap is a loop in {mode}", batched, expected, rtol, atol)
        if gradients:
            _check_gradients(layer, params, state, x, train, seed if step_key is not None else None)
        if not train:
            evaluate, evaluated = jitted, program

    rows = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], numbers) for i in range(min(examples)[0])]
    together = jax.tree.map(_joined, *(evaluate(params, state, row)[0] for row in rows))
    _close("in evaluation examples are independent", together, evaluate(params, state, x)[0], rtol, atol)


def _check_gradients(layer: Layer, params: Any, state: Any, x: Any, train: bool, seed: int | None) -> None:
    with jax.enable_x64(True):
        exact = jax.tree.map(_to_float64, (params, state, x))
        key = None if seed is None else jax.random.fold_in(jax.random.key(seed), 1)
        leaves, structure = jax.tree.flatten((exact[0], exact[2]))
        origin = [np.asarray(_real(leaf)) for leaf in leaves if _is_inexact(leaf)]

        def f(moving):
            given = iter(moving)
            parts = [_as_it_was(next(given), leaf) if _is_inexact(leaf) else leaf for leaf in leaves]
            params, x = structure.unflatten(parts)
            y = layer.apply(params, exact[1], x, train=train, key=key)[0]
            return [_real(leaf) for leaf in jax.tree.leaves(y) if _is_inexact(leaf)]

        outputs = jax.eval_shape(f, origin) if origin else []
        if not outputs:
            return
        try:
            _agree_with_differences(f, origin, outputs)
        except AssertionError as error:
            mode = "training" if train else "evaluation"
            raise AssertionError(
                f"{layer.name}: derivatives in {mode} disagree with finite differences: {error}; where they are meant "
                f"to, as of a stop_gradient or a straight-through estimate, give gradients=False"
            ) from error


def _agree_with_differences(f: Callable[..., list[jax.Array]], origin: list[np.ndarray], outputs: list[Any]) -> None:
    """First and second derivatives of f, from lists to lists, in random directions u and v, in one program for all.

    Forward, Df u and D²f u v are central differences of f and of Df u; in reverse, D<w, f> u and D²<w, f> u v, for
    a random w, are the products of w with these.
    """
    rng = np.random.default_rng(0)
    u, v, w = ([rng.standard_normal(a.shape) for a in arrays] for arrays in (origin, origin, outputs))

    def inner(a: Any, b: Any) -> Any:
        return sum(map(jnp.vdot, a, b))

    @jax.jit
    def measure(moving):
        def along_u(moving):
            return jax.jvp(f, (moving,), (u,))

        def slope(moving):
            return inner(u, jax.grad(lambda moving: inner(w, f(moving)))(moving))

        (y, first), (_, second) = jax.jvp(along_u, (moving,), (v,))
        value, gradient = jax.value_and_grad(slope)(moving)
        return y, first, second, value, inner(v, gradient), inner(w, first), inner(w, second)

    def at(direction: list[np.ndarray], step: float) -> Any:
        return measure([a + step * b for a, b in zip(origin, direction, strict=True)])

    def differences(direction: list[np.ndarray], which: int) -> list[Any]:
        pairs = zip(at(direction, h)[which], at(direction, -h)[which], strict=True)
        return [(np.asarray(after) - np.asarray(before)) / (2 * h) for after, before in pairs]

    h = 1e-5
    _, first, second, slope, curvature, *forward = at(u, 0.0)
    for got, wanted, what in (
        *((a, b, "first, forward") for a, b in zip(first, differences(u, 0), strict=True)),
        *((a, b, "second, forward") for a, b in zip(second, differences(v, 1), strict=True)),
        (slope, forward[0], "first, in reverse"),
        (curvature, forward[1], "second, in reverse"),
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4, err_msg=what)


def _to_float64(leaf: Any) -> Any:
    if not _is_inexact(leaf):
        return leaf
    return np.asarray(leaf).astype(np.float64 if _is_floating(leaf) else np.complex128)


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
    if _is_inexact(leaf):
        return -leaf
    return np.roll(leaf, 1, 0) if isinstance(leaf, np.ndarray) else jnp.roll(leaf, 1, 0)


def _as_numpy(leaf: Any) -> Any:
    """The leaf as a NumPy array; of keys there are none."""
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)


def _stacked(*leaves: Any) -> Any:
    leaves = tuple(map(_as_numpy, leaves))
    return np.stack(leaves) if isinstance(leaves[0], np.ndarray) else jnp.stack(leaves)


def _joined(*leaves: Any) -> Any:
    leaves = tuple(map(_as_numpy, leaves))
    return np.concatenate(leaves) if isinstance(leaves[0], np.ndarray) else jnp.concatenate(leaves)


def _on_host(leaf: Any) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf, np.complex128 if jnp.iscomplexobj(leaf) else np.float64)


def _with_a_key(layer: Layer, run: Callable[[], Any], arguments: Any, key: Any, says_none: bool) -> Any:
    """What ``run`` returns; where it fails, and a key is what was missing, the argument that gives one is named."""
    try:
        return run()
    except Exception as error:
        try:
            works = says_none and layer.apply(*arguments, train=True, key=key) is not None
        except Exception:  # of something else
            works = False
        if not works:
            raise
        raise AssertionError(
            f"{layer.name}: training fails without a key, and does not with one; where it draws random numbers, "
            f"say so: check_layer(layer, x, needs_key=True)"
        ) from error


def _same_structs(rule: str, got: Any, wanted: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path((got, wanted)):
        if not hasattr(leaf, "dtype"):
            place, hint = jax.tree_util.keystr(path[1:]), f"make it one, jnp.asarray({leaf!r}, x.dtype)"
            raise AssertionError(f"{rule}: leaf {place} is a {type(leaf).__name__}, no array; {hint}")
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
