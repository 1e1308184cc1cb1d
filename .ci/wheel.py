"""What is in the wheel: run by the Python of an environment that has it and nothing else (-I: no other path)."""

import importlib
import importlib.metadata
import pkgutil
from pathlib import Path

import jax.numpy as jnp

import jaxnet
from jaxnet import activations, layers, losses, optimizers, training

here = Path(jaxnet.__file__).parent
assert "site-packages" in here.parts, here
assert (here / "py.typed").exists()
assert importlib.metadata.version("jaxnet") == jaxnet.__version__
for module in pkgutil.walk_packages([str(here)], "jaxnet."):
    importlib.import_module(module.name)  # none needs a package that is not installed

x = jnp.linspace(-1, 1, 64)[:, None]
net = layers.chain(layers.conv(4, 3, padding="same"), activations.relu, layers.flatten(), layers.dense(1))
x, y = jnp.broadcast_to(x[:, :, None], (64, 8, 1)), x**2
fit = training.fit(net, losses.mse, optimizers.adam(0.01), (x, y), epochs=100, batch_size=16, progress=False)
assert fit.history["loss"][-1] < 0.02, fit.history["loss"][-1]
print(f"jaxnet {jaxnet.__version__} from its wheel: imported whole, and trained")
