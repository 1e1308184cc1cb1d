"""The same GPT's step in Flax, Equinox and PyTorch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sequence.gpt_step import DECAY, RATE, Size, batch, jax_step, start
from benchmarks.sequence.libraries import Contestant


def flax_params(size: Size) -> dict[str, Any]:
    """The weights by Flax's names and in its layouts."""
    c, heads, weights = size.width, size.heads, start(size)
    params: dict[str, Any] = {"0": {"embedding": weights["0.weight"]}, "1": weights["1.weight"]}
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        if leaf.startswith("in_proj"):
            for part, cut in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                one = params.setdefault(module, {}).setdefault(part, {})
                kernel = leaf.endswith("weight")
                one["kernel" if kernel else "bias"] = cut.T.reshape(c, heads, -1) if kernel else cut.reshape(heads, -1)
        elif module.endswith("out_proj"):
            one = params.setdefault(module.removesuffix(".out_proj"), {}).setdefault("out", {})
            one["kernel" if leaf == "weight" else "bias"] = value.T.reshape(heads, -1, c) if leaf == "weight" else value
        elif module not in ("0", "1"):
            kind = {"bias": "bias", "weight": "kernel" if value.ndim == 2 else "scale"}[leaf]
            params.setdefault(module, {})[kind] = value.T if kind == "kernel" else value
    return params


def flax(size: Size) -> Contestant:
    """`nn.MultiHeadDotProductAttention` in a compact module."""
    import optax
    from flax import linen as nn

    c, heads = size.width, size.heads
    dtype: Any = jnp.bfloat16 if size.narrow else jnp.float32  # of what is computed; params are float32

    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(size.tokens, c, dtype=dtype, name="0")(tokens)
            places = self.param("1", nn.initializers.zeros, (size.length, c)).astype(dtype)
            x = x + places[None, : tokens.shape[1]]
            mask = nn.make_causal_mask(tokens)
            for i in range(2, 2 + size.blocks):
                y = nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=f"{i}.0.branch.0")(x)
                x = x + nn.MultiHeadDotProductAttention(heads, dtype=dtype, name=f"{i}.0.branch.1")(y, mask=mask)
                y = nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=f"{i}.1.branch.0")(x)
                y = jax.nn.gelu(nn.Dense(4 * c, dtype=dtype, name=f"{i}.1.branch.1")(y))
                x = x + nn.Dense(c, dtype=dtype, name=f"{i}.1.branch.3")(y)
            x = nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=str(2 + size.blocks))(x)
            y = nn.Dense(size.tokens, use_bias=False, dtype=dtype, name=str(3 + size.blocks))(x)
            return y.astype(jnp.float32)

    net = Net()
    return jax_step(
        size,
        lambda params, x: net.apply({"params": params}, x),
        flax_params(size),
        optax.adamw(RATE, weight_decay=DECAY),
        lambda grads: {"0.weight": grads["0"]["embedding"], "1.weight": grads["1"]},
    )


def equinox(size: Size) -> Contestant:
    """`eqx.nn.MultiheadAttention`, each sequence by itself under vmap."""
    import equinox as eqx
    import optax

    c = size.width
    weights = start(size)
    key = jax.random.key(0)

    def linear(inputs, outputs, weight, bias=None):
        module = eqx.nn.Linear(inputs, outputs, use_bias=bias is not None, key=key)
        module = eqx.tree_at(lambda m: m.weight, module, jnp.asarray(weight))
        return module if bias is None else eqx.tree_at(lambda m: m.bias, module, jnp.asarray(bias))

    def norm(name):
        values = [jnp.asarray(weights[f"{name}.{leaf}"]) for leaf in ("weight", "bias")]
        return eqx.tree_at(lambda m: [m.weight, m.bias], eqx.nn.LayerNorm(c, eps=1e-5), values)

    class Block(eqx.Module):
        first: Any
        attend: Any
        second: Any
        up: Any
        down: Any

        def __init__(self, i):
            attend, feed = f"{i}.0.branch", f"{i}.1.branch"
            self.first, self.second = norm(f"{attend}.0"), norm(f"{feed}.0")
            parts = zip(
                *(np.split(weights[f"{attend}.1.in_proj_{leaf}"], 3) for leaf in ("weight", "bias")), strict=True
            )
            out = [weights[f"{attend}.1.out_proj.{leaf}"] for leaf in ("weight", "bias")]
            projections = [linear(c, c, *part) for part in (*parts, out)]
            biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
            module = eqx.nn.MultiheadAttention(size.heads, c, key=key, **biases)
            self.attend = eqx.tree_at(
                lambda m: [m.query_proj, m.key_proj, m.value_proj, m.output_proj], module, projections
            )
            self.up = linear(c, 4 * c, weights[f"{feed}.1.weight"], weights[f"{feed}.1.bias"])
            self.down = linear(4 * c, c, weights[f"{feed}.3.weight"], weights[f"{feed}.3.bias"])

        def __call__(self, x, mask):
            y = jax.vmap(self.first)(x)
            x = x + self.attend(y, y, y, mask=mask)
            y = jax.vmap(self.up)(jax.vmap(self.second)(x))
            return x + jax.vmap(self.down)(jax.nn.gelu(y))

    class Net(eqx.Module):
        table: Any
        positions: Any
        blocks: list
        norm: Any
        head: Any

        def __init__(self):
            self.table, self.positions = jnp.asarray(weights["0.weight"]), jnp.asarray(weights["1.weight"])
            self.blocks = [Block(i) for i in range(2, 2 + size.blocks)]
            self.norm = norm(str(2 + size.blocks))
            self.head = linear(c, size.tokens, weights[f"{3 + size.blocks}.weight"])

        def __call__(self, tokens):
            x = self.table[tokens] + self.positions[: len(tokens)]
            mask = jnp.tril(jnp.ones((len(tokens), len(tokens)), bool))
            for block in self.blocks:
                x = block(x, mask)
            return jax.vmap(self.head)(jax.vmap(self.norm)(x))

    params, static = eqx.partition(Net(), eqx.is_array)
    return jax_step(
        size,
        lambda params, x: jax.vmap(eqx.combine(params, static))(x),
        params,
        optax.adamw(RATE, weight_decay=DECAY),
        lambda grads: {"0.weight": grads.table, "1.weight": grads.positions},
    )


def torch(size: Size, compiled: bool = False) -> Contestant:
    """As nanoGPT: one product for queries, keys and values, and `scaled_dot_product_attention`; fused AdamW."""
    import torch
    from torch.nn import functional

    nn, c, heads = torch.nn, size.width, size.heads

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_proj_weight, self.in_proj_bias = (
                nn.Parameter(torch.empty(3 * c, c)),
                nn.Parameter(torch.empty(3 * c)),
            )
            self.out_proj = nn.Linear(c, c)

        def forward(self, x):
            qkv = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
            q, k, v = qkv.view(*x.shape[:2], 3, heads, c // heads).permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out_proj(y.transpose(1, 2).reshape(x.shape))

    class Residual(nn.Module):
        def __init__(self, *branch):
            super().__init__()
            self.branch = nn.Sequential(*branch)

        def forward(self, x):
            return x + self.branch(x)

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(size.length, c))

        def forward(self, x):
            return x + self.weight[: x.shape[1]]

    def block():
        feed = nn.Linear(c, 4 * c), nn.GELU(approximate="tanh"), nn.Linear(4 * c, c)
        return nn.Sequential(Residual(nn.LayerNorm(c), Attention()), Residual(nn.LayerNorm(c), *feed))

    head = nn.Linear(c, size.tokens, bias=False)
    blocks = [block() for _ in range(size.blocks)]
    net: Any = nn.Sequential(nn.Embedding(size.tokens, c), Positions(), *blocks, nn.LayerNorm(c), head)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in start(size).items()})
    tokens, targets = (torch.from_numpy(a.astype(np.int64)) for a in batch(size))
    apply = torch.compile(net) if compiled else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY, fused=True)

    def backward():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=size.narrow):
            logits = apply(tokens)
        loss = functional.cross_entropy(logits.float().view(-1, size.tokens), targets.view(-1))
        loss.backward()
        return loss.detach()

    def run():
        loss = backward()
        optimizer.step()
        return loss

    backward()
    grads = {name: p.grad.numpy().copy() for name, p in net.named_parameters()}
    return Contestant(run, lambda loss: {"loss": loss.numpy(), **grads})
