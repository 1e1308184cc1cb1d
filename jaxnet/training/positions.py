"""The position of a loader as JSON and back, so that a checkpoint holds it: nothing is ever pickled."""

import base64
import sys
from typing import Any

import numpy as np

from jaxnet._incoming import read
from jaxnet.errors import CheckpointError


def of_its_own(position: Any) -> Any:
    """A position that stays as it is when its loader goes on, which may have given what it changes in place."""
    if type(position) in (list, tuple):
        return type(position)(map(of_its_own, position))
    if isinstance(position, dict):
        return {name: of_its_own(entry) for name, entry in position.items()}
    if isinstance(position, np.ndarray):
        return position.copy()
    return position.clone() if hasattr(position, "detach") else position


def as_json(position: Any) -> Any:
    """A position as JSON: plain values as they are, all else as a dict of one entry, which says what it is.

    Raises:
      CheckpointError: it holds something that is not known here.
    """
    if position is None or isinstance(position, (bool, int, float, str)):
        return position
    if type(position) is list:
        return [as_json(entry) for entry in position]
    if type(position) is tuple:
        return {"tuple": [as_json(entry) for entry in position]}
    if isinstance(position, dict):
        return {"dict": [[as_json(name), as_json(entry)] for name, entry in position.items()]}
    if isinstance(position, bytes):
        return {"bytes": position.hex()}
    if isinstance(position, (np.ndarray, np.generic)) and position.dtype.kind in "biufc":
        return {"array": [str(position.dtype), position.shape, _text(position)]}
    if hasattr(position, "detach"):  # the state of a generator of PyTorch's
        array = read(position)
        return {"tensor": [str(array.dtype), array.shape, _text(array)]}
    raise CheckpointError(
        f"the loader's position holds a {type(position).__name__}, which cannot be saved (numbers, texts, bytes, "
        f"arrays, and lists and dicts of them can): give a function from the epoch to its batches, which are read again"
    )


def from_json(saved: Any) -> Any:
    """The position of which `as_json` made this."""
    if isinstance(saved, list):
        return [from_json(entry) for entry in saved]
    if not isinstance(saved, dict):
        return saved
    ((kind, value),) = saved.items()
    if kind == "tuple":
        return tuple(map(from_json, value))
    if kind == "dict":
        return {from_json(name): from_json(entry) for name, entry in value}
    if kind == "bytes":
        return bytes.fromhex(value)
    if kind == "json":  # of older checkpoints
        return value
    dtype, shape, text = value
    array = np.frombuffer(base64.b64decode(text), dtype).reshape(shape).copy()
    if kind == "tensor":
        return sys.modules["torch"].from_numpy(array)
    return array if array.ndim else array[()]  # NumPy's scalars, which can be names in a dict


def _text(array: np.ndarray | np.generic) -> str:
    return base64.b64encode(array.tobytes()).decode()
