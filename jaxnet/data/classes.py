"""Classes by name, and their numbers from 0, which a loss and a network know alone."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet._tables import few
from jaxnet.errors import DataError, named


@dataclasses.dataclass(frozen=True)
class Classes:
    """Classes in the order of their numbers, from 0; as `classes` finds them, or as they were kept.

    Attributes:
      names: of each class, words or numbers of Python, none twice; JSON keeps them.

    Raises:
      DataError: no class, one twice, or something that is no name.

    Example:
      >>> from jaxnet import data
      >>> animals = data.Classes(("cat", "dog"))
      >>> animals.encode(["dog", "cat", "dog"])
      array([1, 0, 1], dtype=int32)
      >>> animals.decode([1, 0])
      ['dog', 'cat']
    """

    names: tuple[Any, ...]

    @named("Classes")
    def __post_init__(self):
        names = tuple(_plain(self.names))
        object.__setattr__(self, "names", names)
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if not names or twice:
            raise DataError(f"each class must be named once, got {few(list(map(repr, twice or names)), 8)}")
        object.__setattr__(self, "_numbers", {name: number for number, name in enumerate(names)})

    def __len__(self) -> int:
        return len(self.names)

    @named("encode")
    def encode(self, values: Any) -> np.ndarray:
        """The numbers of names, int32 of shape (samples,).

        Raises:
          DataError: a name that is none of these, or a gap.
        """
        given, numbers = _plain(values), self._numbers  # type: ignore[attr-defined]
        encoded = [numbers.get(value, -1) for value in given]
        if -1 in encoded:
            unknown = list(dict.fromkeys(value for value in given if value not in numbers))
            raise DataError(
                f"{few(list(map(repr, unknown)), 8)} (first at index {encoded.index(-1)}) "
                f"{'is' if len(unknown) == 1 else 'are'} none of the {len(self)} classes "
                f"{few(list(map(repr, self.names)), 8)}; find the classes of all data, "
                f"data.classes(...), or drop those samples"
            )
        return np.array(encoded, np.int32)

    @named("decode")
    def decode(self, numbers: Any) -> list[Any]:
        """The names of numbers, such as ``logits.argmax(-1)``.

        Raises:
          DataError: what is no number of a class.
        """
        numbers = np.asarray(numbers)
        if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
            raise DataError(
                f"the numbers must be integers of shape (samples,), got {numbers.dtype} {numbers.shape}; of "
                f"logits give logits.argmax(-1)"
            )
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise DataError(
                f"there are {len(self)} classes, 0 to {len(self) - 1}, got {numbers.min()} to {numbers.max()}"
            )
        return [self.names[number] for number in numbers.tolist()]


@named("classes")
def classes(values: Any) -> Classes:
    """The classes that occur among values, in sorted order.

    Args:
      values: a name a sample, words or numbers: a list, an array (samples,), or a column of a table.

    Returns:
      `Classes`, which make numbers of the names and names of the numbers.

    Raises:
      DataError: no value, a gap (None, NaN), or values of several kinds.

    Example:
      >>> from jaxnet import data
      >>> data.classes(["dog", "cat", "dog"])
      Classes(names=('cat', 'dog'))
    """
    found = set(_plain(values))
    try:
        return Classes(tuple(sorted(found)))
    except TypeError:
        kinds = sorted({type(value).__name__ for value in found})
        raise DataError(f"the values are of several kinds, {' and '.join(kinds)}; make them of one") from None


def _plain(values: Any) -> list[Any]:
    """Names as plain values of Python, which compare and hash alike wherever they come from."""
    if isinstance(values, (str, bytes)) or not (isinstance(values, Iterable) or hasattr(values, "__array__")):
        raise DataError(
            f"wanted a name a sample, got {words.came(values)}; give a list, an array, or a column of a table"
        )
    if isinstance(values, np.ndarray):
        values = checks.unmasked("names", values)
    array = values if isinstance(values, (list, tuple)) else np.asarray(values)
    if np.ndim(array) != 1 and not isinstance(array, (list, tuple)):
        raise DataError(f"the names must lie along one axis, got the shape {np.shape(array)}")
    plain = [value.item() if isinstance(value, np.generic) else value for value in array]
    for index, value in enumerate(plain):
        if not isinstance(value, (str, bytes, bool, int, float)) or value != value:
            raise DataError(f"{value!r} at index {index} is no name; fill such gaps, or drop those samples")
    return plain
