"""The table of all optimizers, which drives the contract tests."""

import jax.numpy as jnp
import pytest

from jaxnet import optimizers


def half_at(step):
    return 0.01 * 0.5 ** (step / 100)


OPTIMIZERS = {
    "sgd": lambda: optimizers.sgd(0.01),
    "sgd momentum": lambda: optimizers.sgd(0.01, momentum=0.9),
    "sgd nesterov, schedule": lambda: optimizers.sgd(half_at, momentum=0.9, nesterov=True),
    "sgd wide accumulator": lambda: optimizers.sgd(0.01, momentum=0.9, accumulator_dtype=jnp.float32),
    "adam": lambda: optimizers.adam(0.01),
    "adam nesterov, schedule": lambda: optimizers.adam(half_at, nesterov=True),
    "adam half mu": lambda: optimizers.adam(0.01, mu_dtype=jnp.bfloat16),
    "adamw": lambda: optimizers.adamw(0.01, weight_decay=0.1),
    "adamw scheduled decay": lambda: optimizers.adamw(0.01, weight_decay=half_at, mask=lambda tree: True),
    "adagrad": lambda: optimizers.adagrad(0.01),
    "rmsprop": lambda: optimizers.rmsprop(0.01),
    "rmsprop centered momentum": lambda: optimizers.rmsprop(
        0.01, centered=True, momentum=0.9, nesterov=True, bias_correction=True, eps=1.0, eps_in_sqrt=False
    ),
    "adabelief": lambda: optimizers.adabelief(0.01),
    "lookahead": lambda: optimizers.lookahead(optimizers.adam(0.01), 3, 0.5),
    "lookahead reset": lambda: optimizers.lookahead(optimizers.sgd(0.01, 0.9), 2, 0.8, reset_state=True),
    "angulargrad cos": lambda: optimizers.angulargrad(0.01),
    "angulargrad tan": lambda: optimizers.angulargrad(0.01, variant="tan"),
    "clip by norm": lambda: optimizers.chain(optimizers.clip_by_global_norm(0.5), optimizers.sgd(0.01)),
    "clip by value": lambda: optimizers.chain(optimizers.clip_by_value(0.5), optimizers.sgd(0.01)),
    "decay": lambda: optimizers.chain(optimizers.add_decayed_weights(half_at), optimizers.sgd(0.01, 0.9)),
    "skip nonfinite": lambda: optimizers.skip_nonfinite(optimizers.adam(0.01)),
    "flat": lambda: optimizers.flat(optimizers.adam(0.01)),
    "lion": lambda: optimizers.lion(0.01),
    "muon": lambda: optimizers.muon(0.01, weight_decay=0.1),
    "adan": lambda: optimizers.adan(0.01, weight_decay=0.1),
    "schedule free sgd": lambda: optimizers.schedule_free_sgd(0.01, warmup_steps=2, weight_decay=0.1),
    "schedule free adamw": lambda: optimizers.schedule_free_adamw(half_at, b2=0.9, weight_decay=0.1),
    "partition": lambda: optimizers.partition(
        {lambda path, leaf: leaf.ndim > 1: optimizers.adam(0.01), "*": optimizers.sgd(half_at, momentum=0.9)}
    ),
    "ema": lambda: optimizers.ema(optimizers.adam(0.01), 0.9),
    "swa": lambda: optimizers.swa(optimizers.sgd(half_at, 0.9), start=2, every=2),
    "master copy": lambda: optimizers.master_copy(optimizers.adam(0.01)),
}


@pytest.fixture(params=OPTIMIZERS, ids=lambda name: name.replace(" ", "-").replace(",", ""))
def optimizer(request):
    """Every optimizer of the library, in a configuration that uses what it has."""
    return OPTIMIZERS[request.param]()


@pytest.fixture
def params():
    """A tree of everything a parameter tree may hold."""
    return {
        "kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4),
        "nested": [{"bias": jnp.array([0.5, -0.0, 2.0])}, (jnp.float32(0.25),)],
        "half": jnp.linspace(-1, 1, 5, dtype=jnp.bfloat16),
        "empty": jnp.zeros((0, 3)),
        "nothing": None,
    }
