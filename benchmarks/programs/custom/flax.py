import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.programs.digits import test, train


class Swish(nnx.Module):
    def __init__(self, features):
        self.slope = nnx.Param(jnp.ones(features))

    def __call__(self, x):
        return x * nnx.sigmoid(self.slope * x)


rngs = nnx.Rngs(0)
model = nnx.Sequential(nnx.Linear(64, 64, rngs=rngs), Swish(64), nnx.Linear(64, 10, rngs=rngs))
optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, x, y):
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    optimizer.update(model, nnx.grad(loss)(model))


x, y = train
rng = np.random.default_rng(0)
for _ in range(20):
    for rows in rng.permutation(len(x)).reshape(-1, 32):
        step(model, optimizer, x[rows], y[rows])
print((model(test[0]).argmax(-1) == test[1]).mean())
