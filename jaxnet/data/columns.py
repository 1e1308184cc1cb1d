"""Columns of a table as the arrays of a training set."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from jaxnet import _checks as checks
from jaxnet import _incoming as incoming
from jaxnet import _words as words
from jaxnet._tables import few
from jaxnet.data._usable import check_finite, check_lengths
from jaxnet.data.classes import Classes
from jaxnet.errors import ConfigError, DataError, DTypeError, located, named


@overload
def columns(
    table: Any,
    *,
    target: None,
    features: Sequence[str],
    classes: Mapping[str, Classes] | None = None,
    dtype: Any = np.float32,
) -> np.ndarray: ...


@overload
def columns(
    table: Any,
    *,
    target: str | Sequence[str],
    features: Sequence[str] | None = None,
    classes: Mapping[str, Classes] | None = None,
    dtype: Any = np.float32,
) -> tuple[np.ndarray, np.ndarray]: ...


@named("columns")
def columns(
    table: Any,
    *,
    target: str | Sequence[str] | None,
    features: Sequence[str] | None = None,
    classes: Mapping[str, Classes] | None = None,
    dtype: Any = np.float32,
) -> Any:
    """The pair ``(x, target)`` of a table's columns, or x alone.

    Args:
      table: a data frame of pandas or polars, or a dict of columns by name.
      target: the column to predict: numbers of shape (rows,), integers as int32, floats and truths as ``dtype``. A list
        of names gives a matrix (rows, columns) in ``dtype``, which is what a network of as many units predicts. None,
        of rows that are to be predicted, gives x alone.
      features: the columns of x, in this order; all others unless given, in the table's order. Of rows without a target
        it must be given: the columns, and the order, that the network was trained on.
      classes: of columns that hold words, or whose numbers stand for classes: as target they become their numbers, as
        a feature one column a class, 1 where it is this one and 0 elsewhere.
      dtype: of x.

    Returns:
      ``(x, target)``, x of shape (rows, features): what `training.fit` takes as data, with a batch size. Without a
      target x.

    Raises:
      ConfigError: what is no table, a column that it does not have, or classes that are none.
      DataError: gaps, a word that is none of the classes, or integers that ``dtype`` would round.
      DTypeError: words without classes.

    Example:
      >>> from jaxnet import data
      >>> table = {"age": [3, 7, 5], "colour": ["red", "blue", "red"], "kind": ["cat", "dog", "cat"]}
      >>> classes = {name: data.classes(table[name]) for name in ("colour", "kind")}
      >>> x, target = data.columns(table, target="kind", classes=classes)
      >>> x.tolist(), target.tolist()
      ([[3.0, 0.0, 1.0], [7.0, 1.0, 0.0], [5.0, 0.0, 1.0]], [0, 1, 0])
    """
    names = _names(table)
    classes = _checked(classes)
    if target is None and features is None:
        raise ConfigError(
            "features must be given where there is no target: the columns that the network was trained on, in that "
            f"order; the table has {few(names, 20)}"
        )
    if target is None:  # the classes of what was the target stay unused
        classes = {name: kinds for name, kinds in classes.items() if name in names}
    targets = [target] if isinstance(target, str) else _several("target", target) if target is not None else []
    features = [name for name in names if name not in targets] if features is None else _several("features", features)
    wanted = {"target": targets, "features": features, "classes": list(classes)}
    for argument, each in wanted.items():
        if absent := [name for name in each if name not in names]:
            raise ConfigError(f"{argument} names {few(absent, 8)}, and the table has the columns {few(names, 20)}")
        if not each and argument != "classes" and not (argument == "target" and target is None):
            raise ConfigError(f"{argument} must name at least one column of {few(names, 20)}")
    if both := [name for name in features if name in targets]:
        raise ConfigError(f"{few(both, 8)} cannot be a feature and the target, since the network would only copy it")
    dtype = np.dtype(dtype)

    def encoded(name: str) -> np.ndarray:
        with located(f"column {name!r}"):
            return classes[name].encode(table[name])

    def matrix(name: str) -> np.ndarray:
        """A column as columns of floats."""
        if name in classes:
            return (encoded(name)[:, None] == np.arange(len(classes[name]))).astype(dtype)
        return _rounded(name, _numbers(name, table[name]), dtype)[:, None]

    parts = [matrix(name) for name in features]
    check_lengths(parts, features)
    x = np.concatenate(parts, axis=1)
    if target is None:
        return x
    if not isinstance(target, str):
        return x, np.concatenate([matrix(name) for name in targets], axis=1)
    if target in classes:
        return x, encoded(target)
    numbers = _numbers(target, table[target])
    return x, _rounded(target, numbers, np.dtype(np.int32) if numbers.dtype.kind in "iu" else dtype)


def _names(table: Any) -> list[str]:
    if hasattr(table, "collect"):  # polars' lazy frame
        raise ConfigError("the table is a lazy one; give table.collect()")
    if isinstance(table, Mapping):
        return list(table)
    if not hasattr(table, "columns") or not hasattr(table, "__getitem__"):
        raise ConfigError(
            f"the table must be a data frame of pandas or polars or a dict of columns by name, got "
            f"{type(table).__name__}"
        )
    return list(table.columns)


def _several(argument: str, names: Any) -> list[Any]:
    """The names of several columns."""
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise ConfigError(f"{argument} must be a list of columns, got {words.came(names)}; give [{names!r}]")
    return list(names)


def _checked(classes: Any) -> dict[str, Classes]:
    """The classes of columns by name."""
    if classes is None:
        return {}
    if not isinstance(classes, Mapping):
        hint = "classes={'a column': them}"
        if not isinstance(classes, Classes):
            hint = "classes={name: data.classes(table[name]) for name in [...]}"
        raise ConfigError(f"classes must be a dict of Classes by column, got {words.came(classes)}; give {hint}")
    for name, kinds in classes.items():
        if not isinstance(kinds, Classes):
            hint = "data.Classes(...) of names in their order, or data.classes(...) of a column"
            raise ConfigError(f"classes[{name!r}] must be Classes, got {words.came(kinds)}; make them with {hint}")
    return dict(classes)


def _numbers(name: str, column: Any) -> np.ndarray:
    """A column of numbers without gaps."""
    if isinstance(column, np.ndarray):
        column = checks.unmasked(f"the column {name!r}", column)
    array = np.asarray(incoming.read(column) if hasattr(column, "__array__") else column)
    if array.ndim != 1:
        raise DataError(f"the column {name!r} must hold one value a row, got the shape {array.shape}")
    if not checks.is_numeric(array.dtype):
        column = f"table[{name!r}]"
        cure = words.of_no_numbers(column, array, f"[float(v) for v in {column}]", f"[int(v) for v in {column}]") or (
            f"of words give classes={{{name!r}: data.classes({column})}}, fill gaps, or leave it out of features"
        )
        raise DTypeError(f"the column {name!r} holds {array.dtype}, no numbers; {cure}")
    check_finite(f"the column {name!r}", array)
    return array


def _rounded(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """In another dtype, where that keeps what integers mean, and makes none of what has fractions."""
    with np.errstate(invalid="ignore"):
        result = array.astype(dtype)
        changed = (result.astype(array.dtype) != array).any()
    if changed and dtype.kind in "iub" and array.dtype.kind not in "iub":
        raise DataError(f"the column {name!r} holds fractions, which {dtype} would cut off; give a float")
    if changed and array.dtype.kind in "iu":
        raise DataError(
            f"the column {name!r} holds integers up to {array.max()}, which {dtype} would change; leave it out, give "
            f"its classes, or subtract a beginning"
        )
    return result
