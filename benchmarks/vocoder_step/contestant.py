"""A network in training, as it is timed; and how one made of pure functions trains, in any library of JAX's."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.vocoder_step.networks import Task, Weights, initial_weights

RATE = 1e-4


class Contestant(NamedTuple):
    """A network in training.

    Attributes:
      run: takes one step on the task's batch and returns the loss.
      weights: returns the present weights, in our layout.
      many: takes so many steps and waits for the last, on a GPU; ours in one dispatch, as `training.fit` does.
    """

    run: Callable[[], Any]
    weights: Callable[[], Weights]
    many: Callable[[int], Any] | None = None


class Network(NamedTuple):
    """A network as pure functions.

    Attributes:
      apply: ``(params, x) -> y``.
      pack: weights in our layout to the library's params.
      unpack: the reverse.
      channels_first: whether x and y have the axes (batch, channels, length).
    """

    apply: Callable[[Any, Any], Any]
    pack: Callable[[Weights], Any]
    unpack: Callable[[Any], Weights]
    channels_first: bool = False


def jax_contestant(task: Task, network: Network, optimizer: Any, *, loop: bool = False) -> Contestant:
    """One compiled step with parameters and optimizer state donated, as any JAX training loop has it; or many."""

    def step(params, state, x, target):
        def loss(params):
            return task.loss(network.apply(params, x), target)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), state, value

    def steps(params, state, x, target, count):
        def body(_, carry):
            params, state, _ = carry
            return step(params, state, x, target)

        return jax.lax.fori_loop(0, count, body, (params, state, jnp.float32(0)))

    compiled, looped = jax.jit(step, donate_argnums=(0, 1)), jax.jit(steps, donate_argnums=(0, 1))
    batch = [jnp.asarray(a.swapaxes(1, 2) if network.channels_first else a) for a in (task.x, task.target)]
    params = jax.tree.map(jnp.array, network.pack(initial_weights(task.parts)))
    carry: list[Any] = [(params, optimizer.init(params))]

    def run(program: Any = compiled, *count):
        params, state, loss = program(*carry[0], *batch, *count)
        carry[0] = params, state
        return jax.block_until_ready(loss)

    def weights():
        return jax.tree.map(np.array, network.unpack(carry[0][0]))

    return Contestant(run, weights, (lambda count: run(looped, np.int32(count))) if loop else None)


def cast_to(apply: Callable[[Any, Any], Any], dtype: str) -> Callable[[Any, Any], Any]:
    """Computes in ``dtype`` with float32 parameters, for the libraries that leave this to their users."""
    if dtype == "float32":
        return apply

    def cast(params, x):
        params = jax.tree.map(lambda p: p.astype(dtype), params)
        return apply(params, x.astype(dtype)).astype(jnp.float32)

    return cast
