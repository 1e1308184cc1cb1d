"""A small GPT on bytes, a whole AdamW step: pre-norm blocks, learned positions, GELU by tanh, a head of its own."""

from functools import partial

import jax

from benchmarks.sequence.gpt_peers import equinox, flax, torch
from benchmarks.sequence.gpt_step import DECAY, RATE, Size, batch, jax_step, start
from benchmarks.sequence.libraries import Contestant, Work
from jaxnet import interop, layers, losses, optimizers

WIDE = Size(width=512, heads=8, length=128, batch=8)


def works(small: Size = Size(), wide: Size = WIDE) -> list[Work]:  # noqa: B008, a tuple
    """The step of two sizes, in float32 and with products in bfloat16."""
    found = []
    for name, size in {"gpt": small, "gpt-wide": wide}.items():
        makers = {"ours": ours, "flax": flax, "equinox": equinox, "torch": torch}
        makers |= {"torch.compile": partial(torch, compiled=True)}
        narrow = size._replace(narrow=True)
        found += [
            Work(name, size.label, {library: partial(make, size) for library, make in makers.items()}, 1e-3),
            Work(
                f"{name}-bfloat16",
                narrow.label,
                # Equinox has no switch for it.
                {library: partial(make, narrow) for library, make in makers.items() if library != "equinox"},
                0.1,  # of the largest gradient: 8 bits, through as many products as there are layers
            ),
        ]
    return found


def ours(size: Size) -> Contestant:
    """`layers.chain` of residual blocks."""
    net = network(size)
    tokens, _ = batch(size)
    params, state = interop.from_torch(start(size), net, tokens)
    whole = layers.mixed_precision(net) if size.narrow else net
    return jax_step(
        size,
        lambda params, x: whole.apply(params, state, x, train=True)[0],
        params,
        optimizers.adamw(RATE, weight_decay=DECAY),
        lambda grads: dict(interop.to_torch(grads, state, net)),
        losses.softmax_cross_entropy,
    )


def network(size: Size) -> layers.Layer:
    """Attention with its norm, then two dense layers with theirs."""
    blocks = [
        layers.chain(
            layers.residual(layers.chain(layers.layer_norm(), layers.attention(size.heads, causal=True, bias=True))),
            layers.residual(
                layers.chain(layers.layer_norm(), layers.dense(4 * size.width), jax.nn.gelu, layers.dense(size.width))
            ),
        )
        for _ in range(size.blocks)
    ]
    head = layers.dense(size.tokens, bias=False)
    return layers.chain(
        layers.embedding(size.tokens, size.width), layers.positions(size.length), *blocks, layers.layer_norm(), head
    )
