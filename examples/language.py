"""Trains a model of bytes on the sources of Python's own standard library, measures it beside xz, and lets it write.

python examples/language.py                              # 15 minutes of training
python examples/language.py --minutes 2
python examples/language.py --prompt "def parse("        # what was trained goes on writing

Stopped (Ctrl-C, or worse), the same command goes on where it was.
"""

import argparse
import bz2
import hashlib
import lzma
import math
import sysconfig
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import activations, initializers, layers, losses, memory, optimizers, training

NOTHING = 256  # what stands before the text
NEAR = 8  # how many of the last bytes are looked at one by one
TOGETHER = (2, 3, 4, 5, 6, 8)  # how many of them are looked up together
REPEATED = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 32)  # how many have to come again for what followed them to be told
WINDOW = 8192  # in how many bytes they may come again
RATE = 0.01
PARTS = 15  # points of the learning curve


def context(hashed: int) -> layers.Layer:
    """From bytes (batch, time) to entries of a table, (batch, time, how many): what is known at each position.

    The last bytes, each by itself; the last k together, as one of ``hashed`` entries; and the byte that followed when
    the last k had come before. Nothing of it is learned: the table is.
    """
    sizes = [NOTHING + 1] * NEAR + [hashed] * len(TOGETHER) + [NOTHING + 1] * len(REPEATED)
    first = np.cumsum([0, *sizes[:-1]], dtype=np.int32)

    def entries(text):
        length, most = text.shape[1], max(*TOGETHER, *REPEATED, NEAR)
        before = jnp.pad(text, ((0, 0), (most, 0)), constant_values=NOTHING)
        back = [before[:, most - k : most - k + length] for k in range(most)]  # the byte k positions ago
        last = hashes(back)
        found = back[:NEAR] + [(last[k] % np.uint32(hashed)).astype(jnp.int32) for k in TOGETHER]
        found += [followed(text, last[k], k) for k in REPEATED]
        return jnp.stack(found, axis=-1) + first[None, None]

    def start(params, state, x, capacity):
        return jnp.full((x.shape[0], WINDOW), NOTHING, jnp.int32)

    def step(params, state, memory, x):
        text = jnp.concatenate([memory, x.astype(jnp.int32)], axis=1)
        return entries(text)[:, WINDOW:], text[:, x.shape[1] :]

    def whole(params, state, x, *, train, key):
        return entries(x.astype(jnp.int32)), state

    return layers.layer("context", None, whole, stream=layers.Stream(start, step))


def hashes(back: list[jax.Array]) -> dict[int, jax.Array]:
    """A number, uint32, that stands for the last k bytes, for each k."""
    found, h = {}, jnp.zeros(back[0].shape, jnp.uint32)
    for k, byte in enumerate(back, 1):
        h = (h ^ byte.astype(jnp.uint32)) * np.uint32(0x9E3779B1)
        found[k] = h = h ^ (h >> np.uint32(15))
    return found


def followed(text: jax.Array, last: jax.Array, k: int) -> jax.Array:
    """The byte that followed the latest earlier time that the last k were the same, within the window; or `NOTHING`."""
    rows, here = jnp.arange(text.shape[0])[:, None], jnp.arange(text.shape[1])[None]
    order = jnp.argsort(last, axis=1)  # it is stable: of equals, the earlier come first
    ordered = jnp.take_along_axis(last, order, axis=1)
    again = jnp.pad(ordered[:, 1:] == ordered[:, :-1], ((0, 0), (1, 0)))
    earlier = jnp.where(again, jnp.roll(order, 1, axis=1), -1)
    earlier = jnp.full_like(text, -1).at[rows, order].set(earlier, unique_indices=True)
    known = (earlier >= 0) & (here - earlier <= WINDOW - k)
    known &= jnp.take_along_axis(text, jnp.maximum(earlier, 0), axis=1) == text
    return jnp.where(known, jnp.take_along_axis(text, jnp.maximum(earlier, 0) + 1, axis=1), NOTHING)


def network(width: int, blocks: int, hashed: int) -> layers.Layer:
    """The context's entries, 16 numbers each, and blocks that make logits of the next byte out of them."""
    entries = (NOTHING + 1) * (NEAR + len(REPEATED)) + hashed * len(TOGETHER)

    def block():
        inner = layers.chain(layers.rms_norm(), layers.dense(2 * width), activations.relu, layers.dense(width))
        return layers.residual(inner)

    return layers.chain(
        context(hashed), layers.embedding(entries, 16, table_init=initializers.normal(0.05)), side_by_side,
        layers.dense(width), *(block() for _ in range(blocks)), layers.rms_norm(),
        layers.dense(256, kernel_init=initializers.normal(0.01)),
    )  # fmt: skip


def side_by_side(x: jax.Array) -> jax.Array:
    """(batch, time, how many, 16) to (batch, time, features); doubled, the rows learn at twice the others' rate."""
    return 2 * x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])


def bits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy in bits a byte."""
    return losses.softmax_cross_entropy(logits, targets) / math.log(2)


def part(path: str) -> str:
    """Whether a file is for training, validation or test: by a hash of its path, the same on every machine."""
    share = int(hashlib.sha256(path.encode()).hexdigest()[:8], 16) / 2**32
    return "test" if share < 0.05 else "validation" if share < 0.1 else "train"


def load(root: Path) -> dict[str, np.ndarray]:
    """The bytes of all Python files under ``root``, by part, file after file in the order of their paths."""
    texts: dict[str, list[bytes]] = {"train": [], "validation": [], "test": []}
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if "site-packages" not in place.parts:
            texts[part(place.as_posix())].append(path.read_bytes())
    return {name: np.frombuffer(b"".join(text), np.uint8) for name, text in texts.items()}


def windows(text: np.ndarray, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Stretches of the text, (stretches, length), and for each byte the one to predict, which comes next."""
    rows = text[starts[:, None] + np.arange(length + 1)]
    return rows[:, :-1], rows[:, 1:].astype(np.int32)


def batches(text: np.ndarray, length: int, rows: int, seed: int, first: int, steps: int) -> Iterator[tuple]:
    """Batches number ``first`` and on: the text is cut into stretches, which are drawn without putting them back."""
    order = np.random.default_rng(seed).permutation((len(text) - 1) // length) * length
    for step in range(first, first + steps):
        yield windows(text, order[np.arange(step * rows, (step + 1) * rows) % len(order)], length)


def measure(net: layers.Layer, params, state, text: np.ndarray, rows: int = 8, piece: int = 4096) -> float:
    """Bits a byte of the whole text, in which each byte is predicted from at most `WINDOW` bytes before it.

    The text is cut into a few rows, which are fed to the network as a stream, piece by piece: what was read before is
    remembered, over the ends of pieces and of files, as xz does it too. The first bytes of a row have nothing before.
    """
    rows = min(rows, len(text))
    length = math.ceil(len(text) / rows / piece) * piece
    before = np.concatenate([np.full(1, ord("\n"), np.uint8), text[:-1]])
    x, y = (np.resize(a, rows * length).reshape(rows, -1, piece).swapaxes(0, 1) for a in (before, text))
    counts = (np.arange(rows * length) < len(text)).reshape(rows, -1, piece).swapaxes(0, 1)
    stream = layers.streaming(net)

    @jax.jit
    def feed(params, state, x, y, counts):
        logits, state = stream.apply(params, state, x, train=False)
        return state, jnp.sum(jnp.where(counts, losses.softmax_cross_entropy(logits, y, reduction="none"), 0.0))

    state = jax.jit(partial(layers.stream_state, stream))(params, state, x[0])
    total = 0.0
    for one in zip(x, y.astype(np.int32), counts, strict=True):
        state, nats = feed(params, state, *one)
        total += float(nats)
    return total / math.log(2) / len(text)


def rule(steps: int) -> optimizers.Optimizer:
    """Adam, whose rate rises for a twentieth of the steps and then falls to 0."""
    return optimizers.adam(optimizers.warmup_cosine_decay_schedule(0.0, RATE, max(1, steps // 20), steps), b2=0.98)


def affordable(net: layers.Layer, batch: tuple, seconds: float) -> int:
    """How many steps the seconds are enough for, by the time that the first few take."""
    began = time.perf_counter()
    train_state = training.init(net, rule(100), batch[0], 0)
    step = jax.jit(training.make_step(net, bits, rule(100)), donate_argnums=0)
    train_state = jax.block_until_ready(step(train_state, batch)[0])
    compiled = time.perf_counter()
    for _ in range(6):
        train_state = jax.block_until_ready(step(train_state, batch)[0])
    now = time.perf_counter()
    # fit compiles it again, and its own, and measures after each part
    return max(PARTS, int(0.95 * (seconds - (now - began) - (compiled - began)) / ((now - compiled) / 6)))


def write(net: layers.Layer, params, state, prompt: bytes, length: int, temperature: float, seed: int) -> bytes:
    """The prompt, and what the model writes after it: the network as a stream, a byte at a time, in one scan."""
    stream = layers.streaming(net)
    logits, state = jax.jit(partial(stream.apply, train=False))(params, state, jnp.array([list(prompt)], jnp.uint8))

    @jax.jit
    def written(params, carry, keys):
        def one(carry, key):
            state, logits = carry
            byte = jax.random.categorical(key, logits / temperature).astype(jnp.uint8)
            logits, state = stream.apply(params, state, byte[:, None], train=False)
            return (state, logits[:, -1]), byte[0]

        return jax.lax.scan(one, carry, keys)[1]

    keys = jax.random.split(jax.random.key(seed), length)
    return prompt + bytes(np.asarray(written(params, (state, logits[:, -1]), keys)))


def main(argv: list[str] | None = None) -> float:
    """Runs the example and returns the bits a byte of the test files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15, help="of training (default: 15)")
    parser.add_argument("--prompt", help="only write on, after this text, with what was trained")
    parser.add_argument("--length", type=int, default=500, help="bytes to write (default: 500)")
    parser.add_argument("--temperature", type=float, default=0.9, help="below 1 is surer (default: 0.9)")
    parser.add_argument("--seed", type=int, default=0, help="of start, order and samples (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a small model and 30 steps, to see that all works")
    parser.add_argument("--root", type=Path, default=Path(sysconfig.get_path("stdlib")), help="a folder of sources")
    parser.add_argument("--out", type=Path, default=Path("out"), help="for the run and picture (default: out)")
    args = parser.parse_args(argv)

    began = time.perf_counter()
    width, blocks, hashed, rows, length = (16, 1, 2**8, 2, 64) if args.quick else (128, 2, 2**18, 2, 8192)
    net = network(width, blocks, hashed)
    texts = load(args.root)
    print(", ".join(f"{which} {len(text):,} bytes" for which, text in texts.items()))
    name = f"language-{'quick' if args.quick else f'{args.minutes:g}-minutes'}-seed{args.seed}"
    plan = args.out / f"{name}.txt"  # how many steps the minutes are is measured once, so that a run can go on
    if not plan.exists():
        plan.parent.mkdir(parents=True, exist_ok=True)
        example = next(batches(texts["train"], length, rows, args.seed, 0, 1))
        plan.write_text(str(2 if args.quick else affordable(net, example, args.minutes * 60) // PARTS))
    steps = int(plan.read_text())

    def of_part(number):
        return batches(texts["train"], length, rows, args.seed, number * steps, steps)

    held_out = batches(texts["validation"], length, rows, 0, 0, max(1, 8 // rows))
    identity = {"data": str(zlib.crc32(texts["train"].tobytes()))}
    fit = training.fit(
        net, bits, rule(PARTS * steps), of_part, epochs=PARTS, validation=[*held_out], key=args.seed,
        keep=training.keep(args.out / name, seconds=60, last=1, best=False, identity=identity),
    )  # fmt: skip
    prompt = (args.prompt or "def main(").encode()
    print(write(net, fit.params, fit.state, prompt, args.length, args.temperature, args.seed).decode(errors="replace"))
    if args.prompt is not None:
        return math.nan

    trained, test = time.perf_counter() - began, texts["test"].tobytes()
    ours = measure(net, fit.params, fit.state, texts["test"])
    peers = {"xz -9e": lzma.compress(test, preset=9 | lzma.PRESET_EXTREME), "bz2": bz2.compress(test, 9)}
    sizes = {"this model": ours} | {which: 8 * len(packed) / len(test) for which, packed in peers.items()}
    print(f"bits a byte of the {len(test):,} bytes of the test files:")
    print("\n".join(f"  {which:10} {value:.4f}" for which, value in sizes.items()))
    picture = fit.history.plot(args.out / f"{name}.png", f"bits a byte; on the test files {ours:.3f}")
    print(f"learning curves: {picture}")
    print(f"{trained:.0f} s to train, {time.perf_counter() - began - trained:.0f} s to measure")
    return ours


if __name__ == "__main__":
    memory.reuse()  # steps are faster on a CPU: docs/kernels.md
    main()
