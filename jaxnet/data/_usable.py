"""What every function of data asks of arrays: equally many samples, finite, in dtypes that JAX keeps."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnet import _checks as checks
from jaxnet import _incoming as incoming
from jaxnet.errors import ConfigError, DataError, DTypeError

Arrays = np.ndarray | tuple[np.ndarray, ...]
"""One array, or several whose first axes count the same samples."""


def usable(arrays: Sequence[Any], names: Sequence[str] | None = None) -> list[np.ndarray]:
    """The arrays on the host, ready to train on: equally many and finite, in dtypes that JAX keeps.

    Raises:
      DataError: no samples, arrays of different lengths, a NaN, an Inf, or a mask.
      DTypeError: something that is no numeric array.

    Warns:
      UserWarning: once, of all that is rounded to 32 bits.
    """
    names = names or [f"array {i}" for i in range(len(arrays))]
    narrowed: dict[str, np.dtype] = {}
    given = columns_of(arrays, names)
    columns = [checks.host_array(name, column, narrowed) for name, column in zip(names, given, strict=True)]
    for name, column in zip(names, columns, strict=True):
        check_finite(name, column)
    checks.warn_of_narrowed(narrowed)
    return columns


def columns_of(arrays: Sequence[Any], names: Sequence[str] | None = None, *, call: str = "") -> list[np.ndarray]:
    """The arrays as NumPy has them, with one entry a sample each, under these names in errors."""
    if not arrays:
        raise DataError("at least one array is needed, got none")
    if names is None:  # by a loader's door, where a tree would be stacked, or taken for one array
        names = [f"array {i}" for i in range(len(arrays))]
        for name, given in zip(names, arrays, strict=True):
            if isinstance(given, dict) or (
                isinstance(given, tuple) and any(hasattr(entry, "shape") for entry in given)
            ):
                raise DTypeError(
                    f"{name} is a {type(given).__name__} of arrays; give its arrays one by one, as in "
                    f"{call}(tokens, mask, target), and put those of each part together again"
                )
    columns = [np.asarray(incoming.host(name, given)) for name, given in zip(names, arrays, strict=True)]
    check_lengths(columns, names)
    return columns


def check_lengths(columns: Sequence[Any], names: Sequence[str]) -> None:
    """Refuses arrays without samples, or of different numbers of them."""
    for name, column in zip(names, columns, strict=True):
        if not column.ndim:
            raise DataError(f"{name} is a scalar; samples lie along the first axis")
    lengths = [column.shape[0] for column in columns]
    if len(set(lengths)) > 1:
        raise DataError(
            f"the arrays have {', '.join(map(str, lengths))} samples; each needs one entry a sample on its first axis"
        )
    if not lengths[0]:
        raise DataError(f"the data are empty, shape {columns[0].shape}")


def must_fill(batch_size: int, samples: int, otherwise: str = "") -> None:
    """Refuses a batch larger than all samples, where what does not fill one is left out."""
    if batch_size > samples:
        raise DataError(
            f"a batch of {batch_size} does not fill from {samples} samples, so nothing would be trained; use a "
            f"batch_size of at most {samples}{otherwise}"
        )


def check_finite(name: str, column: np.ndarray) -> None:
    """Refuses a NaN and an Inf, and says where it is; looks at a mebi of values at once, which may lie in a file."""
    if column.dtype.kind in "iub":
        return
    rows = max(1, 2**20 // max(1, int(np.prod(column.shape[1:]))))
    found, where = 0, ()
    for first in range(0, len(column), rows) if column.ndim else ():
        finite = np.isfinite(column[first : first + rows])
        if finite.all():
            continue
        if not found:
            row, *rest = np.argwhere(~finite)[0]
            where = (first + int(row), *map(int, rest))
        found += int((~finite).sum())
    if found:
        raise DataError(
            f"{name} holds {column[where]} at index {where} ({found} such values); one "
            f"spoils all that is computed with it: drop those samples, or replace the values"
        )


def generator_of(seed: int, *more: int) -> np.random.Generator:
    """The generator of a seed, and of what else tells its use from another's, such as the epoch."""
    seed = checks.integer("seed", seed, minimum=0)
    if seed >= 2**64:
        raise ConfigError(f"seed must be below 2**64, got {seed}")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=more)))
