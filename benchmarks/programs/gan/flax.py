import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.programs.digits import train

x, _ = train
rngs = nnx.Rngs(0)
generator = nnx.Sequential(nnx.Linear(16, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 64, rngs=rngs), nnx.sigmoid)
critic = nnx.Sequential(nnx.Linear(64, 64, rngs=rngs), nnx.leaky_relu, nnx.Linear(64, 1, rngs=rngs))
of_generator = nnx.Optimizer(generator, optax.adam(1e-3, b1=0.5), wrt=nnx.Param)
of_critic = nnx.Optimizer(critic, optax.adam(1e-3, b1=0.5), wrt=nnx.Param)


@nnx.jit
def step(generator, critic, of_generator, of_critic, noise, real):
    def judge(critic):
        made = jax.lax.stop_gradient(generator(noise))
        return jnp.mean(jax.nn.softplus(-critic(real))) + jnp.mean(jax.nn.softplus(critic(made)))

    def deceive(generator):
        return jnp.mean(jax.nn.softplus(-critic(generator(noise))))

    of_critic.update(critic, nnx.grad(judge)(critic))
    of_generator.update(generator, nnx.grad(deceive)(generator))


rng = np.random.default_rng(0)
for _ in range(40):
    for rows in rng.permutation(len(x)).reshape(-1, 32):
        noise = rng.standard_normal((32, 16), np.float32)
        step(generator, critic, of_generator, of_critic, noise, x[rows])
made = generator(rng.standard_normal((len(x), 16), np.float32))
print(np.abs(made.mean(0) - x.mean(0)).mean())
