"""Causal attention over several lengths, and the rows of a table: output, and gradients by all inputs."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sequence.libraries import Contestant, Work, derivatives, normal, torch_derivatives
from jaxnet import kernels, layers


def works(
    lengths: tuple[int, ...] = (128, 512, 2048), heads: int = 8, features: int = 64, positions: int = 2048
) -> list[Work]:
    """As many positions at every length; and an embedding."""
    found = []
    makers: Any = {"ours": ours, "jax.nn": jax_nn, "flax": flax, "torch": torch}
    makers |= {"torch.compile": partial(torch, compiled=True)}
    for length in lengths:
        shape = (positions // length, length, heads, features)
        label = f"causal attention, length {length}, batch {shape[0]}, {heads} heads of {features}"
        found.append(Work(f"attention-{length}", label, {name: partial(f, shape) for name, f in makers.items()}))
    sizes = (16 * features, 8 * features, positions)
    label = f"embedding, {sizes[2]} tokens of {sizes[0]}, width {sizes[1]}"
    makers = {"ours": our_embedding, "flax": flax_embedding, "torch": torch_embedding}
    return [*found, Work("embedding", label, {name: partial(make, sizes) for name, make in makers.items()})]


def inputs(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Queries, keys and values in one array, and what the output is weighed with."""
    return normal(3, *shape, seed=1), normal(*shape, seed=2)


def ours(shape: tuple[int, ...]) -> Contestant:
    """`kernels.attention`."""
    return derivatives(
        lambda _, x: kernels.attention(x[0], x[1], x[2], causal=True), (), *inputs(shape), lambda grads: {}
    )


def jax_nn(shape: tuple[int, ...]) -> Contestant:
    """`jax.nn.dot_product_attention`."""
    return derivatives(
        lambda _, x: jax.nn.dot_product_attention(x[0], x[1], x[2], is_causal=True),
        (),
        *inputs(shape),
        lambda grads: {},
    )


def flax(shape: tuple[int, ...]) -> Contestant:
    """`nn.dot_product_attention` with a mask."""
    from flax import linen as nn

    mask = nn.make_causal_mask(jnp.ones(shape[:2]))
    return derivatives(
        lambda _, x: nn.dot_product_attention(x[0], x[1], x[2], mask=mask), (), *inputs(shape), lambda grads: {}
    )


def torch(shape: tuple[int, ...], compiled: bool = False) -> Contestant:
    """`scaled_dot_product_attention`, whose heads come before the positions."""
    import torch

    class Attention(torch.nn.Module):
        def forward(self, x):
            q, k, v = x.transpose(2, 3)
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return y.transpose(1, 2)

    return torch_derivatives(Attention(), {}, *inputs(shape), compiled=compiled)


def tokens(sizes: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The table, the tokens, and what the rows are weighed with."""
    entries, features, count = sizes
    drawn = np.random.default_rng(3).integers(0, entries, count).astype(np.int32)
    return normal(entries, features, seed=4), drawn, normal(count, features, seed=5)


def our_embedding(sizes: tuple[int, int, int]) -> Contestant:
    """`layers.embedding`."""
    net = layers.embedding(*sizes[:2])
    return _jax_rows(lambda table, drawn: net.apply({"table": table}, (), drawn, train=True)[0], sizes)


def flax_embedding(sizes: tuple[int, int, int]) -> Contestant:
    """`nn.Embed`."""
    from flax import linen as nn

    net = nn.Embed(*sizes[:2])
    return _jax_rows(lambda table, drawn: net.apply({"params": {"embedding": table}}, drawn), sizes)


def _jax_rows(function: Any, sizes: tuple[int, int, int]) -> Contestant:
    table, drawn, weight = tokens(sizes)
    given = jnp.asarray(drawn)
    return derivatives(lambda _, table: function(table, given), (), table, weight, lambda grads: {})


def torch_embedding(sizes: tuple[int, int, int]) -> Contestant:
    """`nn.Embedding`."""
    import torch

    table, drawn, weight = tokens(sizes)
    given = torch.from_numpy(drawn.astype(np.int64))

    class Rows(torch.nn.Module):
        def forward(self, table):
            return torch.nn.functional.embedding(given, table)

    return torch_derivatives(Rows(), {}, table, weight)
