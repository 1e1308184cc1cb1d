import numpy as np
import optax
from flax import nnx

from benchmarks.programs.digits import test, train


def fit(model, optimizer, x, y, epochs):
    @nnx.jit
    def step(model, optimizer, x, y):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss, argnums=nnx.DiffState(0, optimizer.wrt))(model))

    rng = np.random.default_rng(0)
    for _ in range(epochs):
        for rows in rng.permutation(len(x)).reshape(-1, 32):
            step(model, optimizer, x[rows], y[rows])


x, y = train
rngs = nnx.Rngs(0)
first, last = nnx.Linear(64, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)
model = nnx.Sequential(first, nnx.relu, last)
fit(model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param), x, y, epochs=20)

first = nnx.LoRA(64, 4, 64, base_module=first, rngs=rngs)
last = nnx.LoRA(64, 4, 10, base_module=last, rngs=rngs)
adapted = nnx.Sequential(first, nnx.relu, last)
fit(adapted, nnx.Optimizer(adapted, optax.adam(1e-2), wrt=nnx.LoRAParam), x[:, ::-1], y, epochs=10)
print((adapted(test[0][:, ::-1]).argmax(-1) == test[1]).mean())
