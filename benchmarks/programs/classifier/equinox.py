import equinox as eqx
import jax
import numpy as np
import optax

from benchmarks.programs.digits import test, train

model = eqx.nn.MLP(64, 10, width_size=64, depth=1, key=jax.random.key(0))
optimizer = optax.adam(1e-3)
opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))


@eqx.filter_jit
def step(model, opt_state, x, y):
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()

    updates, opt_state = optimizer.update(eqx.filter_grad(loss)(model), opt_state)
    return eqx.apply_updates(model, updates), opt_state


x, y = train
rng = np.random.default_rng(0)
for _ in range(20):
    for rows in rng.permutation(len(x)).reshape(-1, 32):
        model, opt_state = step(model, opt_state, x[rows], y[rows])
print((jax.vmap(model)(test[0]).argmax(-1) == test[1]).mean())
