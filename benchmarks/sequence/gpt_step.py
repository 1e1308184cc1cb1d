"""What all libraries' steps of a GPT have in common: sizes, weights, batch, and a step in JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sequence.libraries import Arrays, Contestant, normal

RATE, DECAY = 1e-3, 0.01


class Size(NamedTuple):
    """A GPT's sizes, and those of its batch."""

    blocks: int = 4
    width: int = 128
    heads: int = 4
    length: int = 64
    batch: int = 12
    tokens: int = 256
    narrow: bool = False

    @property
    def label(self) -> str:
        return (
            f"GPT step, {self.blocks} blocks, width {self.width}, heads {self.heads}, length {self.length}, "
            f"batch {self.batch}{', bfloat16' if self.narrow else ''}"
        )


def start(size: Size) -> Arrays:
    """Weights by PyTorch's names and in its layouts: those of `ours`, by `interop`."""
    c = size.width
    shapes = {"0.weight": (size.tokens, c), "1.weight": (size.length, c)}
    for i in range(2, 2 + size.blocks):
        attend, feed = f"{i}.0.branch", f"{i}.1.branch"
        shapes |= {f"{attend}.0.weight": (c,), f"{attend}.0.bias": (c,)}
        shapes |= {f"{attend}.1.in_proj_weight": (3 * c, c), f"{attend}.1.in_proj_bias": (3 * c,)}
        shapes |= {f"{attend}.1.out_proj.weight": (c, c), f"{attend}.1.out_proj.bias": (c,)}
        shapes |= {f"{feed}.0.weight": (c,), f"{feed}.0.bias": (c,)}
        shapes |= {f"{feed}.1.weight": (4 * c, c), f"{feed}.1.bias": (4 * c,)}
        shapes |= {f"{feed}.3.weight": (c, 4 * c), f"{feed}.3.bias": (c,)}
    last = 2 + size.blocks
    shapes |= {f"{last}.weight": (c,), f"{last}.bias": (c,), f"{last + 1}.weight": (size.tokens, c)}
    weights = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        weights[name] = normal(*shape, seed=seed, scale=0.05)
        if len(shape) == 1 and name.endswith("weight"):
            weights[name] += 1
    return weights


def batch(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and the token after each."""
    tokens = np.random.default_rng(0).integers(0, size.tokens, (size.batch, size.length + 1)).astype(np.int32)
    return tokens[:, :-1], tokens[:, 1:]


def jax_step(
    size: Size,
    logits: Callable[[Any, Any], Any],
    params: Any,
    optimizer: Any,
    unpack: Callable[[Any], Arrays],
    loss: Callable[[Any, Any], Any] | None = None,
) -> Contestant:
    """One compiled step with params and optimizer state donated."""
    tokens, targets = map(jnp.asarray, batch(size))

    def mean_loss(params):
        y = logits(params, tokens)
        if loss is not None:
            return loss(y, targets)
        import optax

        return optax.softmax_cross_entropy_with_integer_labels(y, targets).mean()

    def step(params, state):
        value, grads = jax.value_and_grad(mean_loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), state, value

    params = jax.tree.map(jnp.array, params)
    grads = {name: np.asarray(value) for name, value in unpack(jax.jit(jax.grad(mean_loss))(params)).items()}
    compiled = jax.jit(step, donate_argnums=(0, 1))
    carry: list[Any] = [(params, optimizer.init(params))]

    def run():
        params, state, value = compiled(*carry[0])
        carry[0] = params, state
        return jax.block_until_ready(value)

    return Contestant(run, lambda value: {"loss": np.asarray(value), **grads})
