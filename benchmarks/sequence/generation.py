"""Tokens from a small GPT, one after the other, each the likeliest, with the keys and values of those before kept."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sequence.gpt import network
from benchmarks.sequence.gpt_peers import flax_params
from benchmarks.sequence.gpt_step import Size, start
from benchmarks.sequence.libraries import Contestant, Work
from jaxnet import interop, layers

FIRST = 1


def works(size: Size = Size(), count: int = 64) -> list[Work]:  # noqa: B008, a tuple
    """The generation."""
    makers = {"ours": ours, "flax": flax, "torch": torch}
    label = f"{count} tokens by a GPT of {size.blocks} blocks, width {size.width}, heads {size.heads}"
    makers = {name: partial(make, size, count) for name, make in makers.items()}
    return [Work("generation", label, makers, 1e-9)]


def _generated(step: Any, params: Any, memory: Any, count: int) -> Contestant:
    """A scan of ``step(params, memory, token, i) -> (logits, memory)``, one program."""

    def along(params, memory):
        def one(carry, i):
            token, memory = carry
            logits, memory = step(params, memory, token, i)
            token = jnp.argmax(logits[:, -1:], -1).astype(jnp.int32)
            return (token, memory), token[0, 0]

        first = jnp.full((1, 1), FIRST, jnp.int32)
        return jax.lax.scan(one, (first, memory), jnp.arange(count, dtype=jnp.int32))[1]

    program = jax.jit(along)
    return Contestant(
        lambda: jax.block_until_ready(program(params, memory)), lambda tokens: {"tokens": np.asarray(tokens)}
    )


def ours(size: Size, count: int) -> Contestant:
    """`layers.streaming` of the network that is trained."""
    net = network(size)
    stream = layers.streaming(net, capacity=count)
    piece = jnp.zeros((1, 1), jnp.int32)
    params, state = interop.from_torch(start(size), net, piece)
    memory = layers.stream_state(stream, params, state, piece)
    return _generated(
        lambda params, memory, token, i: stream.apply(params, memory, token, train=False), params, memory, count
    )


def flax(size: Size, count: int) -> Contestant:
    """`nn.MultiHeadDotProductAttention(decode=True)`, whose cache is a collection."""
    from flax import linen as nn

    c = size.width

    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens, position):
            x = nn.Embed(size.tokens, c, name="0")(tokens)
            table = self.param("1", nn.initializers.zeros, (size.length, c))
            x = x + jax.lax.dynamic_slice_in_dim(table, position, tokens.shape[1])[None]
            for i in range(2, 2 + size.blocks):
                y = nn.LayerNorm(epsilon=1e-5, name=f"{i}.0.branch.0")(x)
                x = x + nn.MultiHeadDotProductAttention(size.heads, decode=True, name=f"{i}.0.branch.1")(y)
                y = nn.LayerNorm(epsilon=1e-5, name=f"{i}.1.branch.0")(x)
                y = jax.nn.gelu(nn.Dense(4 * c, name=f"{i}.1.branch.1")(y))
                x = x + nn.Dense(c, name=f"{i}.1.branch.3")(y)
            x = nn.LayerNorm(epsilon=1e-5, name=str(2 + size.blocks))(x)
            return nn.Dense(size.tokens, use_bias=False, name=str(3 + size.blocks))(x)

    net = Net()
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, count), jnp.int32), 0)["cache"]
    cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def step(params, cache, token, i):
        logits, new = net.apply({"params": params, "cache": cache}, token, i, mutable=["cache"])
        return logits, new["cache"]

    return _generated(step, jax.tree.map(jnp.asarray, flax_params(size)), cache, count)


def torch(size: Size, count: int) -> Contestant:
    """Eager, with keys and values written into arrays that were made once."""
    import torch
    from torch.nn import functional as f

    weights = {name: torch.from_numpy(value) for name, value in start(size).items()}
    shape = (1, size.heads, count, size.width // size.heads)
    memory = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(size.blocks)]
    of = weights.__getitem__

    def norm(x, name):
        return f.layer_norm(x, (size.width,), of(f"{name}.weight"), of(f"{name}.bias"))

    def linear(x, name):
        return f.linear(x, of(f"{name}.weight"), of(f"{name}.bias"))

    def logits(token, i):
        x = f.embedding(token, of("0.weight")) + of("1.weight")[i]
        for block, (keys, values) in enumerate(memory, 2):
            attend, feed = f"{block}.0.branch", f"{block}.1.branch"
            y = norm(x, f"{attend}.0")
            y = f.linear(y, of(f"{attend}.1.in_proj_weight"), of(f"{attend}.1.in_proj_bias"))
            q, k, v = y.view(1, 3, size.heads, 1, -1).unbind(1)
            keys[:, :, i : i + 1], values[:, :, i : i + 1] = k, v
            y = f.scaled_dot_product_attention(q, keys[:, :, : i + 1], values[:, :, : i + 1])
            x = x + linear(y.reshape(1, 1, -1), f"{attend}.1.out_proj")
            y = f.gelu(linear(norm(x, f"{feed}.0"), f"{feed}.1"), approximate="tanh")
            x = x + linear(y, f"{feed}.3")
        return f.linear(norm(x, str(2 + size.blocks)), of(f"{3 + size.blocks}.weight"))

    def run():
        token, found = torch.full((1, 1), FIRST), []
        with torch.no_grad():
            for i in range(count):
                token = logits(token, i)[:, -1].argmax(-1, keepdim=True)
                found.append(token)
        return torch.cat(found)[:, 0]

    return Contestant(run, lambda tokens: {"tokens": tokens.numpy().astype(np.int32)})
