"""One small run, for the tests of many devices and of many processes."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import activations, layers, losses, optimizers
from tests.training import calls


def sounds(samples, seed=0):
    """Classes of noise with means and scales of their own, so that no part of a batch has the statistics of another."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, samples)
    x = generator.normal(labels[:, None, None], 1 + labels[:, None, None], (samples, 16, 4))
    return x.astype(np.float32), labels.astype(np.int32)


def network():
    # A bias before batch norm would have no gradient but rounding, which Adam scales up to whole steps.
    return layers.chain(
        layers.conv(16, 3, padding="same", bias=False), layers.batch_norm(), activations.relu, layers.dropout(0.2),
        layers.flatten(), layers.dense(8), activations.relu, layers.dense(3),
    )  # fmt: skip


def averaging():
    """An optimizer whose averages are validated, with statistics made anew."""
    return optimizers.ema(optimizers.adam(1e-2), 0.9)


def fit(data=None, optimizer=None, **options):
    options = {"batch_size": 16, "validation": sounds(19, seed=1), **options} if data is None else options
    data = sounds(72) if data is None else data
    return calls.fit(
        network(), losses.softmax_cross_entropy, optimizer or optimizers.adam(1e-2), data,
        **{"epochs": 2, "progress": False, **options},
    )  # fmt: skip


def batches():
    x, labels = sounds(64)
    return [(x[first : first + 16], labels[first : first + 16]) for first in range(0, 64, 16)]


def close(a, b):
    """Whether two runs have measured and learned the same, up to rounding that Adam has had time to spread."""
    assert a.history.names == b.history.names
    for name in set(a.history.names) - {"seconds", "steps_per_second"}:
        np.testing.assert_allclose(a.history[name], b.history[name], rtol=2e-4, err_msg=name)
    for tree in ("params", "state"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), getattr(a, tree), getattr(b, tree)
        )


def identical(a, b):
    """Whether two runs are in the same state, bit for bit."""
    for x, y in zip(jax.tree.leaves(a.train_state), jax.tree.leaves(b.train_state), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)
    for name in set(a.history.names) - {"seconds", "steps_per_second"}:
        np.testing.assert_array_equal(a.history[name], b.history[name], err_msg=name)
