"""First and second derivatives against central differences: all that is compared by one program, run at five points."""

import jax
import jax.numpy as jnp
import numpy as np


def assert_derivatives(f, *trees, rtol=1e-6, atol=1e-6, h=1e-5):
    """Of ``f``, an array in float64 of trees of arrays, along random directions, in every order of the two modes."""
    rng = np.random.default_rng(0)
    trees = jax.tree.map(np.asarray, trees)
    u, v = (jax.tree.map(lambda a: rng.standard_normal(a.shape), trees) for _ in range(2))
    w, places = rng.standard_normal(jax.eval_shape(f, *trees).shape), tuple(range(len(trees)))

    def inner(a, b):
        return sum(map(jnp.vdot, jax.tree.leaves(a), jax.tree.leaves(b)))

    def forward(*trees):
        return jax.jvp(f, trees, u)

    def reverse(*trees):
        return inner(jax.grad(lambda *trees: jnp.vdot(w, f(*trees)), places)(*trees), u)

    @jax.jit
    def measure(*trees):
        (y, first), (_, second) = jax.jvp(forward, trees, v)
        slope, forward_over_reverse = jax.jvp(reverse, trees, v)
        return y, first, second, {
            "reverse": (slope, jnp.vdot(w, first)),
            "forward over reverse": (forward_over_reverse, jnp.vdot(w, second)),
            "reverse over reverse": (inner(jax.grad(reverse, places)(*trees), v), jnp.vdot(w, second)),
            "reverse over forward": (
                inner(jax.grad(lambda *trees: jnp.vdot(w, forward(*trees)[1]), places)(*trees), v),
                jnp.vdot(w, second),
            ),
        }  # fmt: skip

    def difference(direction, which):
        moved = (jax.tree.map(lambda a, b, s=s: a + s * b, trees, direction) for s in (h, -h))
        after, before = (np.asarray(measure(*one)[which]) for one in moved)
        return (after - before) / (2 * h)

    _, first, second, pairs = measure(*trees)
    np.testing.assert_allclose(first, difference(u, 0), rtol=rtol, atol=atol, err_msg="forward")
    np.testing.assert_allclose(second, difference(v, 1), rtol=rtol, atol=atol, err_msg="forward over forward")
    for name, pair in pairs.items():
        np.testing.assert_allclose(*pair, rtol=rtol, atol=atol, err_msg=name)
