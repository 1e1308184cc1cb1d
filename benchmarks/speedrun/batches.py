"""The batches of a training, drawn by NumPy from the seed: every library sees the same images, moved alike."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.speedrun.recipes import Recipe


class Plan(NamedTuple):
    """The steps up to the next evaluation, one a row.

    Attributes:
      rows: (steps, batch), which images; int32.
      shift: (steps, batch, 2), where their crops begin in the padded images, along both axes; int32.
      flip: (steps, batch), whether they are mirrored.
      rate: (steps,), the learning rates; float32.
    """

    rows: np.ndarray
    shift: np.ndarray
    flip: np.ndarray
    rate: np.ndarray


def plans(recipe: Recipe, images: int, seed: int) -> Iterator[Plan]:
    """All steps, from one evaluation to the next.

    Every epoch is a permutation of its own, and they follow each other without a gap.
    """
    rng = np.random.default_rng(seed)
    steps, size = recipe.chunk(images), recipe.batch_size
    rates = recipe.rates(steps * recipe.chunks()).reshape(recipe.chunks(), steps)
    mirrored = rng.random(images) < 0.5  # in the first epoch; then it alternates
    queue, epochs = np.empty(0, np.int32), 0
    for rate in rates:
        while len(queue) < steps * size:
            fresh = rng.permutation(images).astype(np.int32) + epochs * images
            queue, epochs = np.concatenate([queue, fresh]), epochs + 1
        taken, queue = queue[: steps * size].reshape(steps, size), queue[steps * size :]
        epoch, rows = np.divmod(taken, images)
        shift = rng.integers(0, 2 * recipe.shift + 1, (steps, size, 2), np.uint8)
        flip = mirrored[rows] ^ (epoch % 2 == 1) if recipe.flip else np.zeros((steps, size), bool)
        yield Plan(rows, shift.astype(np.int32), flip, rate)
