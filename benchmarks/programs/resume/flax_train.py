import os

import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx

from benchmarks.programs.digits import train

rngs = nnx.Rngs(0)
model = nnx.Sequential(nnx.Linear(64, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 10, rngs=rngs))


@nnx.jit
def step(model, optimizer, x, y):
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    optimizer.update(model, nnx.grad(loss)(model))


if __name__ == "__main__":
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    x, y = train
    with ocp.CheckpointManager(os.path.abspath("run"), options=ocp.CheckpointManagerOptions(max_to_keep=1)) as manager:
        first = 0
        if manager.latest_step() is not None:
            like = ocp.args.Composite(
                model=ocp.args.StandardRestore(nnx.state(model)),
                optimizer=ocp.args.StandardRestore(nnx.state(optimizer)),
            )
            restored = manager.restore(manager.latest_step(), args=like)
            nnx.update(model, restored["model"])
            nnx.update(optimizer, restored["optimizer"])
            first = manager.latest_step() + 1
        for epoch in range(first, 200):
            for rows in np.random.default_rng(epoch).permutation(len(x)).reshape(-1, 32):
                step(model, optimizer, x[rows], y[rows])
            saved = ocp.args.Composite(
                model=ocp.args.StandardSave(nnx.state(model)), optimizer=ocp.args.StandardSave(nnx.state(optimizer))
            )
            manager.save(epoch, args=saved)
