"""Trains a network on scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, and draws how it learned.

python examples/digits.py              # a dense network
python examples/digits.py --net conv   # a 1-D convolutional network over the rows of pixels
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from tqdm import tqdm

from jaxnet import activations, data, initializers, layers, losses, optimizers


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


def train(
    net: layers.Layer, predict, sets: tuple[data.Arrays, ...], *, epochs: int, batch_size: int, rate: float, seed: int
):
    """Mini-batch Adam (algorithm 3) with a rate that decays to 0.

    Returns:
      The parameters, the state, and for each epoch (loss, validation loss, validation accuracy).
    """
    (images, labels), validation, _ = sets
    init_key, dropout_key = jax.random.split(jax.random.key(seed))
    params, state = net.init(init_key, jax.ShapeDtypeStruct(images[:1].shape, images.dtype))
    steps = epochs * (len(images) // batch_size)
    optimizer = optimizers.adam(optimizers.warmup_cosine_decay_schedule(0.0, rate, steps // 20, steps))
    opt_state = optimizer.init(params)

    def loss(params, state, x, y, key):
        logits, state = net.apply(params, state, x, train=True, key=key)
        return losses.softmax_cross_entropy(logits, y), state

    @jax.jit
    def step(params, state, opt_state, x, y, i):
        key = jax.random.fold_in(dropout_key, i)
        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state, x, y, key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optimizers.apply_updates(params, updates), state, opt_state, value

    history, values = [], []
    bar = tqdm(
        total=epochs, unit="epoch", bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
    )
    stream = data.batches(images, labels, batch_size=batch_size, seed=seed, epochs=epochs, drop_last=True)
    for i, (x, y) in enumerate(stream, 1):
        params, state, opt_state, value = step(params, state, opt_state, x, y, i)
        values.append(value)
        if i % (steps // epochs) == 0:
            validation_loss, accuracy = evaluate(predict, params, state, *validation)
            history.append((float(np.mean(jax.device_get(values))), validation_loss, accuracy))
            values = []
            bar.set_postfix_str(f"loss {history[-1][0]:.3f}, validation accuracy {accuracy:.1%}")
            bar.update()
    bar.close()
    return params, state, np.array(history)


def evaluate(predict, params, state, x, y) -> tuple[float, float]:
    """The mean loss and the share of digits read rightly."""
    logits = predict(params, state, x)
    return float(losses.softmax_cross_entropy(logits, y)), float(np.mean(np.argmax(logits, -1) == y))


def draw(history: np.ndarray, title: str, path: Path) -> None:
    """The learning curves as a picture."""
    from matplotlib.figure import Figure

    epochs = np.arange(1, len(history) + 1)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    left.plot(epochs, history[:, 0], "k-", label="training")
    left.plot(epochs, history[:, 1], "k--", label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    left.legend()
    right.plot(epochs, 100 * history[:, 2], "k--")
    right.set(xlabel="epoch", ylabel="validation accuracy (%)", ylim=(80, 100.5))
    right.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> float:
    """Runs the example and returns the test accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETWORKS, default="mlp", help="which network (default: mlp)")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training set (default: 30)")
    parser.add_argument("--batch-size", type=int, default=32, help="digits a step (default: 32)")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate (default: 0.003)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the start and the order (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture (default: out)")
    args = parser.parse_args(argv)

    start = time.perf_counter()
    net = NETWORKS[args.net]()
    sets = load(args.seed)
    print(layers.summary(net, jax.ShapeDtypeStruct((1, 8, 8), jnp.float32)))
    predict = jax.jit(lambda params, state, x: net.apply(params, state, x, train=False)[0])
    params, state, history = train(
        net, predict, sets, epochs=args.epochs, batch_size=args.batch_size, rate=args.rate, seed=args.seed
    )
    _, accuracy = evaluate(predict, params, state, *sets[2])
    picture = args.out / f"digits-{args.net}.png"
    draw(history, f"digits, {args.net}: test accuracy {accuracy:.1%}", picture)
    seconds = time.perf_counter() - start
    print(f"test accuracy {accuracy:.2%} on {len(sets[2][0])} digits never seen, {seconds:.1f} s in all")
    print(f"learning curves: {picture}")
    return accuracy


if __name__ == "__main__":
    main()
