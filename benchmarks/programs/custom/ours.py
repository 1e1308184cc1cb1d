import jax
import jax.numpy as jnp

from benchmarks.programs.digits import test, train
from jaxnet import data, layers, losses, metrics, optimizers


def gate(params, x):
    return x * jax.nn.sigmoid(params["slope"] * x)


swish = layers.stateless(lambda key, x: {"slope": jnp.ones(x.shape[-1])}, gate)
net = layers.chain(layers.dense(64), swish, layers.dense(10))
params, state = net.init(0, train[0])
optimizer = optimizers.adam(1e-3)
opt_state = optimizer.init(params)


@jax.jit
def step(params, opt_state, x, y):
    def loss(params):
        return losses.softmax_cross_entropy(net.apply(params, state, x, train=True)[0], y)

    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
    return optimizers.apply_updates(params, updates), opt_state


for x, y in data.batches(*train, batch_size=32, epochs=20):
    params, opt_state = step(params, opt_state, x, y)
print(metrics.accuracy(net.apply(params, state, test[0], train=False)[0], test[1]))
