"""What users hold numbers in, arrays, tables, tensors and lists, as NumPy arrays: asked once, at the door."""

import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet._tables import few
from jaxnet.errors import DTypeError


def is_nested_numbers(value: Any) -> bool:
    """Whether ``value`` is a list of numbers, or of such lists: one array, where a list of arrays is a tree.

    Words count as numbers here: a list of them is one array too, which is then refused as such.
    """
    if not isinstance(value, (list, tuple)):
        return False
    if not value:
        return isinstance(value, list)
    return all(isinstance(entry, (numbers.Number, np.generic, str)) or is_nested_numbers(entry) for entry in value)


def host(name: str, value: Any) -> np.ndarray | jax.Array:
    """An array of any library, a table or nested lists, in a dtype of numbers; JAX's arrays stay as they are.

    What has ``__array__`` or ``__dlpack__`` is read: memory maps, PyTorch's tensors, the data frames and series of
    pandas and polars. The dtype is kept; Python's own floats, which have none, take JAX's.

    Raises:
      DTypeError: what holds no numbers, or rows of several lengths.
      DataError: a masked array.
    """
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, np.ndarray):
        return _numeric(name, value, checks.unmasked(name, value))
    if isinstance(value, (list, tuple)):
        try:
            array = np.asarray(value)
        except ValueError:  # rows of several lengths
            return checks.array(name, value)
        array = _numeric(name, value, array)
        return array.astype(jax.dtypes.canonicalize_dtype(array.dtype)) if array.dtype.kind in "fc" else array
    if isinstance(value, (bool, int, float, complex)):
        return np.asarray(value)
    if isinstance(value, Sequence) and type(rows := _rows(value)) is not type(value):
        return host(name, rows)  # of a column of a data set of Hugging Face
    if not hasattr(value, "__array__") and not hasattr(value, "__dlpack__"):
        return checks.array(name, value)  # which says what to pass
    try:
        array = read(value)
    except Exception as error:
        raise DTypeError(
            f"{name}, a {type(value).__name__}, cannot be read as an array ({error}); pass a jax or numpy array"
        ) from error
    return _numeric(name, value, array)


def _rows(value: Any) -> Any:
    """All that a sequence holds, in what it gives for it: of many, as a range, another of its kind."""
    try:
        return value[:]
    except TypeError:  # a deque
        return value


def read(value: Any) -> np.ndarray:
    """What has ``__array__`` or ``__dlpack__``, or is a tensor of PyTorch's, as a NumPy array."""
    if hasattr(value, "detach"):  # PyTorch's, maybe with a gradient, maybe on another device
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # numpy's comes with JAX, and PyTorch does not know it
            return value.float().numpy().astype(jnp.bfloat16)
    return np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value)


def _numeric(name: str, value: Any, array: np.ndarray) -> np.ndarray:
    if checks.is_numeric(array.dtype):
        return array
    if hasattr(value, "columns") and hasattr(value, "dtypes"):
        each = zip(value.columns, map(str, value.dtypes), strict=True)
        bad = [f"{column} {dtype}" for column, dtype in each if not dtype.lower().startswith(("int", "uint", "float"))]
        bad = bad or [f"{column} {dtype}" for column, dtype in zip(value.columns, value.dtypes, strict=True)]
        raise DTypeError(
            f"{name} has columns that hold no numbers, or have gaps ({few(bad, 8, ' and {} more')}); choose others, "
            f"make numbers of truths with .astype('float32'), encode words, and fill the gaps"
        )
    return checks.host_array(name, array)  # which says why
