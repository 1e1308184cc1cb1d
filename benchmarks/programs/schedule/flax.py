import numpy as np
import optax
from flax import nnx

from benchmarks.programs.digits import test, train

rngs = nnx.Rngs(0)
model = nnx.Sequential(nnx.Linear(64, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 10, rngs=rngs))
rate = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 40, 440)
rule = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)), every_k_schedule=4)
optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, x, y):
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    optimizer.update(model, nnx.grad(loss)(model))


x, y = train
rng = np.random.default_rng(0)
for _ in range(20):
    for rows in rng.permutation(len(x)).reshape(-1, 16):
        step(model, optimizer, x[rows], y[rows])
print((model(test[0]).argmax(-1) == test[1]).mean())
