"""An LSTM and a GRU along a batch of sequences: output, and gradients by input and weights."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sequence.libraries import Arrays, Contestant, Work, derivatives, normal, torch_derivatives
from jaxnet import layers

GATES = {"lstm": "ifgo", "gru": "rzn"}


def works(batch: int = 16, length: int = 64, width: int = 256) -> list[Work]:
    """LSTM and GRU."""
    shape = (batch, length, width)
    makers = {"ours": ours, "flax": flax, "equinox": equinox, "torch": torch, "torch.compile": compiled}
    return [
        Work(
            name,
            f"{name.upper()}, batch {batch}, length {length}, width {width}",
            {library: partial(make, name, shape) for library, make in makers.items()},
        )
        for name in GATES
    ]


def start(name: str, width: int) -> Arrays:
    """Weights in our layout."""
    wide, scale = len(GATES[name]) * width, width**-0.5
    return {
        "kernel": normal(width, wide, seed=1, scale=scale),
        "recurrent_kernel": normal(width, wide, seed=2, scale=scale),
        "bias": normal(wide, seed=3, scale=scale),
        "recurrent_bias": normal(wide, seed=4, scale=scale),
    }


def arrays(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Input, and what the output is weighed with."""
    return normal(*shape, seed=5), normal(*shape, seed=6)


def ours(name: str, shape: tuple[int, int, int]) -> Contestant:
    """`layers.lstm`, `layers.gru`."""
    net = getattr(layers, name)(shape[-1])
    return derivatives(
        lambda params, x: net.apply(params, (), x, train=True)[0], start(name, shape[-1]), *arrays(shape)
    )


def flax(name: str, shape: tuple[int, int, int]) -> Contestant:
    """`nn.RNN` around `OptimizedLSTMCell` or `GRUCell`, whose gates have kernels and biases of their own."""
    from flax import linen as nn

    cell: Any = (nn.OptimizedLSTMCell if name == "lstm" else nn.GRUCell)(shape[-1])
    net = nn.RNN(cell)
    weights = start(name, shape[-1])
    split = {leaf: np.split(value, len(GATES[name]), -1) for leaf, value in weights.items()}
    params: dict[str, Any] = {}
    for i, gate in enumerate(GATES[name]):
        inner, outer = {"kernel": split["kernel"][i]}, {"kernel": split["recurrent_kernel"][i]}
        if name == "lstm":
            outer["bias"] = split["bias"][i] + split["recurrent_bias"][i]
        elif gate == "n":
            inner["bias"], outer["bias"] = split["bias"][i], split["recurrent_bias"][i]
        else:
            inner["bias"] = split["bias"][i] + split["recurrent_bias"][i]
        params |= {f"i{gate}": inner, f"h{gate}": outer}

    def unpack(grads):
        cell = grads["cell"]
        return {
            "kernel": jnp.concatenate([cell[f"i{gate}"]["kernel"] for gate in GATES[name]], -1),
            "recurrent_kernel": jnp.concatenate([cell[f"h{gate}"]["kernel"] for gate in GATES[name]], -1),
        }

    return derivatives(lambda p, x: net.apply({"params": p}, x), {"cell": params}, *arrays(shape), unpack)


def equinox(name: str, shape: tuple[int, int, int]) -> Contestant:
    """`eqx.nn.LSTMCell` or `GRUCell` in a scan, batched by vmap, as its examples do."""
    import equinox as eqx

    width = shape[-1]
    weights = start(name, width)
    kind: Any = eqx.nn.LSTMCell if name == "lstm" else eqx.nn.GRUCell
    cell = kind(width, width, key=jax.random.key(0))
    if name == "lstm":
        values = {"bias": weights["bias"] + weights["recurrent_bias"]}
    else:
        both = weights["bias"].copy()
        both[: 2 * width] += weights["recurrent_bias"][: 2 * width]
        values = {"bias": both, "bias_n": weights["recurrent_bias"][2 * width :]}
    values |= {"weight_ih": weights["kernel"].T, "weight_hh": weights["recurrent_kernel"].T}
    names = tuple(values)
    cell = eqx.tree_at(lambda c: [getattr(c, leaf) for leaf in names], cell, list(map(jnp.asarray, values.values())))
    params, static = eqx.partition(cell, eqx.is_array)

    def along(params, x):
        cell = eqx.combine(params, static)
        zeros = jnp.zeros(width)

        def step(carry, x):
            carry = cell(x, carry)
            return carry, carry[0] if name == "lstm" else carry

        return jax.lax.scan(step, (zeros, zeros) if name == "lstm" else zeros, x)[1]

    def unpack(grads):
        return {"kernel": grads.weight_ih.T, "recurrent_kernel": grads.weight_hh.T}

    return derivatives(jax.vmap(along, (None, 0)), params, *arrays(shape), unpack)


def torch(name: str, shape: tuple[int, int, int], compile_it: bool = False) -> Contestant:
    """`nn.LSTM`, `nn.GRU`."""
    import torch

    module = getattr(torch.nn, name.upper())(shape[-1], shape[-1], batch_first=True)
    weights = start(name, shape[-1])
    theirs = {"kernel": "weight_ih_l0", "recurrent_kernel": "weight_hh_l0"}
    theirs |= {"bias": "bias_ih_l0", "recurrent_bias": "bias_hh_l0"}

    def unpack(grads):
        return {leaf: grads[key].T for leaf, key in theirs.items()}

    return torch_derivatives(
        module,
        {key: weights[leaf].T for leaf, key in theirs.items()},
        *arrays(shape),
        unpack,
        compiled=compile_it,
        of_output=lambda y: y[0],
    )


compiled = partial(torch, compile_it=True)
