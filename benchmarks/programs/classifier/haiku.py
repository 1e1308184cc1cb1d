import haiku as hk
import jax
import numpy as np
import optax

from benchmarks.programs.digits import test, train

net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([64, 10])(x)))
params = net.init(jax.random.key(0), train[0][:1])
optimizer = optax.adam(1e-3)
opt_state = optimizer.init(params)


@jax.jit
def step(params, opt_state, x, y):
    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y).mean()

    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state


x, y = train
rng = np.random.default_rng(0)
for _ in range(20):
    for rows in rng.permutation(len(x)).reshape(-1, 32):
        params, opt_state = step(params, opt_state, x[rows], y[rows])
print((net.apply(params, test[0]).argmax(-1) == test[1]).mean())
