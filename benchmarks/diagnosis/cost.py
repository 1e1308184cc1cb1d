"""What a layer report costs, in training steps."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import timing
from jaxnet import activations, diagnostics, layers, losses, optimizers, training


def _dense(width: int, depth: int) -> layers.Layer:
    return layers.chain(
        *[part for _ in range(depth) for part in (layers.dense(width), activations.relu)], layers.dense(10)
    )


def _conv() -> layers.Layer:
    block = layers.chain(layers.conv(64, 5, padding="same"), layers.batch_norm(), activations.relu)
    return layers.chain(
        layers.conv(64, 5, padding="same"), layers.repeat(layers.residual(block), 8), layers.global_avg_pool(),
        layers.dense(10),
    )  # fmt: skip


NETWORKS = {
    "3 dense layers of 64, batch 32": (_dense(64, 3), (32, 16)),
    "20 dense layers of 256, batch 256": (_dense(256, 20), (256, 64)),
    "8 residual convolutions of 64 channels, 16 x 256 steps": (_conv(), (16, 256, 8)),
}


def measure(seconds: float = 1.0) -> list[dict[str, Any]]:
    """Seconds of a report and of a step, in turns."""
    records = []
    optimizer = optimizers.adam(1e-3)
    for name, (net, shape) in NETWORKS.items():
        x = jax.random.normal(jax.random.key(0), shape)
        batch = (x, jnp.zeros(shape[0], jnp.int32))
        state = training.init(net, optimizer, x, 0)
        step = jax.jit(training.make_step(net, losses.softmax_cross_entropy, optimizer))

        def report(net=net, state=state, batch=batch):
            return diagnostics.layer_report(
                net, losses.softmax_cross_entropy, state.params, state.state, batch, optimizer=optimizer,
                opt_state=state.opt_state, key=state.key,
            )  # fmt: skip

        times = timing.interleaved(
            {"step": lambda step=step, state=state, batch=batch: step(state, batch), "report": report}, seconds=seconds
        )
        records.append({"network": name, **{key: value._asdict() for key, value in times.items()}})
    return records


def table(records: list[dict[str, Any]]) -> str:
    """A row a network."""
    rows = [
        [
            r["network"], f"{1e3 * r['step']['median']:.2f}", f"{1e3 * r['report']['median']:.2f}",
            f"{r['report']['median'] / r['step']['median']:.2f}",
        ]
        for r in records
    ]  # fmt: skip
    return timing.table(["network", "training step, ms", "report, ms", "report / step"], rows)
