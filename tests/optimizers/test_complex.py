"""Complex parameters descend, once the gradient is conjugated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import optimizers
from jaxnet.errors import DTypeError
from tests.optimizers.conftest import OPTIMIZERS

# A real momentum of a complex parameter, an interval, an angle: refused.
REFUSING = {"sgd wide accumulator", "adam half mu", "angulargrad cos", "angulargrad tan", "clip by value"}
TARGET = {"z": np.array([1 + 2j, -1 - 1j, 0.5j], np.complex64), "x": np.array([1.0, -1.0], np.float32)}


def loss(params):
    return sum(jnp.sum(jnp.abs(p - TARGET[name]) ** 2) for name, p in params.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_rule_descends(name):
    optimizer = OPTIMIZERS[name]()
    params = {"z": jnp.zeros(3, jnp.complex64), "x": jnp.zeros(2)}
    if name in REFUSING:
        with pytest.raises(DTypeError, match="complex"):
            optimizer.update(params, optimizer.init(params), params)
        del params["z"]

    def step(carry, _):
        params, state = carry
        grads = optimizers.conjugate(jax.grad(loss)(params))
        updates, state = optimizer.update(grads, state, params)
        params = optimizers.apply_updates(params, scaled(updates, 3.0))
        return (params, state), [jnp.abs(p - TARGET[name]) for name, p in sorted(params.items())]

    _, errors = jax.lax.scan(step, (params, optimizer.init(params)), None, length=60)
    for error, name in zip(errors, sorted(params), strict=True):
        assert bool(jnp.all(error[-1] < 0.98 * jnp.abs(TARGET[name])))
        assert bool(jnp.all(error[-1] <= error[0]))


def scaled(tree, factor):
    return jax.tree.map(lambda x: factor * x, tree)


def test_the_row():
    """abs(y - (1+2j))**2 without the conjugate climbs in the imaginary part."""

    def after(prepare):
        optimizer = optimizers.sgd(0.02)

        def step(carry, _):
            z, state = carry
            updates, state = optimizer.update(prepare(jax.grad(lambda z: jnp.abs(z - (1 + 2j)) ** 2)(z)), state, z)
            return (optimizers.apply_updates(z, updates), state), None

        z = jnp.complex64(0)
        return complex(jax.lax.scan(step, (z, optimizer.init(z)), None, length=150)[0][0])

    assert after(optimizers.conjugate) == pytest.approx(1 + 2j, abs=0.02)
    assert after(lambda grads: grads).imag < -100


def test_real_leaves_are_the_same_objects():
    real, half, numpy = jnp.ones(2), jnp.ones(2, jnp.bfloat16), np.ones(2)
    z = jnp.array([1 + 2j])
    tree = optimizers.conjugate({"a": real, "b": half, "c": numpy, "none": None, "z": z})
    assert tree["a"] is real
    assert tree["b"] is half
    assert tree["c"] is numpy
    assert tree["none"] is None
    np.testing.assert_array_equal(tree["z"], [1 - 2j])
