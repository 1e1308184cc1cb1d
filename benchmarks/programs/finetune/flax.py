from functools import partial

import jax
import numpy as np
import optax
from flax import nnx

from benchmarks.programs.digits import test, train


def fit(model, optimizer, x, y, after=lambda: None):
    @nnx.jit
    def step(model, optimizer, x, y):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss, argnums=nnx.DiffState(0, optimizer.wrt))(model))

    rng = np.random.default_rng(0)
    for _ in range(10):
        for rows in rng.permutation(len(x)).reshape(-1, 32):
            step(model, optimizer, x[rows], y[rows])
            after()


x, y = train
rngs = nnx.Rngs(0)
backbone = nnx.Sequential(nnx.Linear(64, 64, rngs=rngs), nnx.BatchNorm(64, rngs=rngs), nnx.relu)
parity = nnx.Sequential(backbone, nnx.Linear(64, 2, rngs=rngs))
fit(parity, nnx.Optimizer(parity, optax.adam(1e-3), wrt=nnx.Param), x, y % 2)

backbone.eval()
neck, head = nnx.Linear(64, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)
model = nnx.Sequential(backbone, neck, nnx.relu, head)
learned = nnx.All(nnx.Param, lambda path, _: path[1] != 0)
groups = {"neck": optax.adam(1e-3), "head": optax.adam(1e-2)}
labels = partial(jax.tree.map_with_path, lambda path, _: "neck" if path[1].key == 1 else "head")
optimizer = nnx.Optimizer(model, optax.partition(groups, labels), wrt=learned)
ema = optax.ema(0.99)
average = ema.init(nnx.state(model, learned))
update = jax.jit(lambda params, average: ema.update(params, average)[1])


def average_weights():
    global average
    average = update(nnx.state(model, learned), average)


fit(model, optimizer, x, y, after=average_weights)
nnx.update(model, ema.update(nnx.state(model, learned), average)[0])
print((model(test[0]).argmax(-1) == test[1]).mean())
