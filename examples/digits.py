"""Trains a network on scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, and draws how it learned.

python examples/digits.py              # a dense network
python examples/digits.py --net conv   # a 1-D convolutional network over the rows of pixels

Stopped (Ctrl-C, or worse), the same command goes on where it was.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from jaxnet import activations, data, initializers, layers, losses, memory, optimizers, training


def dense_network() -> layers.Layer:
    """64 pixels -> 128 -> 128 -> 10 classes."""
    he = initializers.he_normal()
    return layers.chain(
        layers.flatten(),
        layers.dense(128, kernel_init=he), activations.relu, layers.dropout(0.2),
        layers.dense(128, kernel_init=he), activations.relu, layers.dropout(0.2),
        layers.dense(10),
    )  # fmt: skip


def conv_network() -> layers.Layer:
    """8 rows in time, 8 columns as channels: three convolutions, two of them residual."""
    he = initializers.he_normal()

    def block():
        return layers.chain(layers.conv(64, 3, padding="same", kernel_init=he), layers.batch_norm(), activations.relu)

    return layers.chain(
        block(), layers.residual(block()), layers.residual(block()), layers.avg_pool(2),
        layers.flatten(), layers.dropout(0.3), layers.dense(10),
    )  # fmt: skip


NETWORKS = {"mlp": dense_network, "conv": conv_network}


def load(seed: int) -> tuple[data.Arrays, ...]:
    """The digits as (images, labels), 70 % to train, 10 % to validate, 20 % to test, each class in its share."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / 8 - 1).astype(np.float32)  # 0..16 to -1..1
    return data.split(images, labels.astype(np.int32), seed=seed, stratify=labels)


def accuracy(logits, labels):
    """The share of digits read rightly."""
    return jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))


def main(argv: list[str] | None = None) -> float:
    """Runs the example and returns the test accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETWORKS, default="mlp", help="which network (default: mlp)")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training set (default: 30)")
    parser.add_argument("--batch-size", type=int, default=32, help="digits a step (default: 32)")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate (default: 0.003)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the start and the order (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="folder for checkpoints and picture (default: out)"
    )
    args = parser.parse_args(argv)

    start = time.perf_counter()
    net = NETWORKS[args.net]()
    (images, labels), validation, test = load(args.seed)
    print(layers.summary(net, jax.ShapeDtypeStruct((1, 8, 8), jnp.float32)))
    steps = args.epochs * (len(images) // args.batch_size)
    fit = training.fit(
        net,
        losses.softmax_cross_entropy,
        optimizers.adam(optimizers.warmup_cosine_decay_schedule(0.0, args.rate, steps // 20, steps)),
        training.arrays(images, labels, batch_size=args.batch_size, seed=args.seed),
        epochs=args.epochs,
        validation=validation,
        metrics={"accuracy": accuracy},
        key=args.seed,
        keep=args.out / f"digits-{args.net}-epochs{args.epochs}-batch{args.batch_size}-rate{args.rate}-seed{args.seed}",
    )
    evaluate = training.make_evaluate(net, losses.softmax_cross_entropy, metrics={"accuracy": accuracy})
    score = evaluate(fit.params, fit.state, test)["accuracy"]
    picture = fit.history.plot(args.out / f"digits-{args.net}.png", f"digits, {args.net}: test accuracy {score:.1%}")
    seconds = time.perf_counter() - start
    print(f"test accuracy {score:.2%} on {len(test[0])} digits never seen, {seconds:.1f} s in all")
    print(f"learning curves: {picture}")
    return score


if __name__ == "__main__":
    memory.reuse()  # steps are faster on a CPU: docs/kernels.md
    main()
