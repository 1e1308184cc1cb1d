import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.programs.digits import train
from jaxnet import activations, data, layers, optimizers, training

x, _ = train
generator = layers.chain(layers.dense(64), activations.relu, layers.dense(64), activations.sigmoid)
critic = layers.chain(layers.dense(64), activations.leaky_relu, layers.dense(1))
adam = optimizers.adam(1e-3, b1=0.5)


def noise(epoch):
    return np.random.default_rng(epoch).standard_normal((len(x), 16), np.float32)


def deceive(made_score, real_score, made, real):
    return jnp.mean(jax.nn.softplus(-made_score))


def judge(real_score, made_score):
    return jnp.mean(jax.nn.softplus(-real_score)) + jnp.mean(jax.nn.softplus(made_score))


step = training.make_gan_step(generator, critic, deceive, judge, adam, adam)
begin = training.init_gan(generator, critic, adam, adam, noise(0), 0)
batches = training.stream(lambda epoch: data.batches(noise(epoch), x, batch_size=32, seed=epoch))
gan = training.train(step, begin, batches, epochs=40).train_state
made = training.predict(generator, *gan.weights, noise(40))
print(np.abs(made.mean(0) - x.mean(0)).mean())
