"""Shows backpropagation: figure 4.8 of the chapter, and a network's loss, layer by layer.

python examples/backprop.py   # prints both, and draws out/backprop.png and out/backprop-network.png
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxnet import activations, backprop, layers, losses


def waves(w1, w2, w3):
    """The sum of a sine and a cosine wave of one frequency, eq. 4.25."""
    v1, v2 = jnp.sin(w2), jnp.cos(w2)
    return w1 * v1 + w3 * v2


def network() -> tuple[layers.Layer, jax.Array, jax.Array]:
    """A small convolutional network, signals, and what it should say about them."""
    net = layers.chain(
        layers.conv(8, 5, strides=2),
        activations.leaky_relu,
        layers.residual(layers.chain(layers.conv(8, 3, padding="same"), jnp.tanh)),
        layers.repeat(layers.residual(layers.conv(8, 3, padding="same")), 3),
        layers.flatten(),
        layers.dense(1),
    )
    time = jnp.arange(32.0)
    frequencies = jnp.array([0.2, 0.4, 0.8])
    return net, jnp.sin(frequencies[:, None] * time[None])[:, :, None], frequencies[:, None]


def main(argv: list[str] | None = None) -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures (default: out)")
    args = parser.parse_args(argv)

    figure = backprop.trace(waves, 2.0, 0.5, 3.0)
    print(figure)
    figure.draw(args.out / "backprop.png")

    net, x, y = network()
    params, state = net.init(jax.random.key(0), x)

    def loss(params, x, y):
        prediction, _ = net.apply(params, state, x, train=True)
        return losses.mse(prediction, y)

    by_layer = backprop.trace(loss, params, x, y, argnums=0)
    print(f"\n{by_layer}")
    by_layer.draw(args.out / "backprop-network.png")
    print("\nThe three copies inside of chain[3]:\n")
    print(by_layer.open("chain[3]/scan"))


if __name__ == "__main__":
    main()
