"""What a run measured, epoch by epoch: kept, written as JSON lines, and drawn."""

import contextlib
import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxnet import _checks as checks
from jaxnet._figures import figure, saved
from jaxnet.errors import CheckpointError, ConfigError, DataError, named
from jaxnet.training import _atomic, _file

Record = dict[str, float]
"""One epoch: ``epoch`` (from 1), ``step``, ``loss``, ... and ``validation_loss``, ... where there is validation."""


class History:
    """The records of a run, one an epoch.

    ``history["loss"]`` is a column as a float64 array (epochs,), NaN where a record lacks it; iterating gives the
    records. Those of `fit` hold "epoch", from 1, and "step", the steps done at its end; the means over its steps of
    what they measured, "loss", ..., "loss_deviation", the loss's standard deviation from step to step, and "skipped",
    how many steps changed nothing; "validation_loss", ...; "seconds", what its steps took without compiling, and
    "steps_per_second".

    Args:
      records: one dict of numbers an epoch.

    Raises:
      ConfigError: from ``history[name]``, no such column.

    Example:
      >>> from jaxnet.training import History
      >>> history = History([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
      >>> history["loss"], len(history), history[-1]
      (array([0.5 , 0.25]), 2, {'epoch': 2, 'loss': 0.25})
    """

    def __init__(self, records: list[Record] | None = None):
        self.records: list[Record] = list(records or [])

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    @named("history")
    def __getitem__(self, name: str | int) -> Any:
        if isinstance(name, int):
            return self.records[name]
        if name not in self.names:
            raise ConfigError(f"no column {name!r}; there are {', '.join(self.names) or 'none'}")
        return np.array([record.get(name, math.nan) for record in self.records])

    def __repr__(self) -> str:
        return f"History({len(self)} epochs: {', '.join(self.names)})"

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, in the order in which they came."""
        return tuple(dict.fromkeys(name for record in self.records for name in record))

    @named("History.save")
    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one JSON object a line; NaN and Inf as JavaScript does, which `json` and pandas read.

        Raises:
          ConfigError: ``path`` is none, or a record holds what JSON cannot.
        """
        _atomic.write(checks.path("path", path), b"".join(map(_line, self.records)))

    @classmethod
    @named("History.load")
    def load(cls, path: str | os.PathLike[str]) -> "History":
        """Reads what `save`, or a run's ``log``, has written; a last line that a killed process left half is dropped.

        Raises:
          ConfigError: ``path`` is none.
          DataError: a line is no JSON object.
        """
        place = checks.path("path", path)
        return cls(_records(place.read_bytes(), place))

    @named("History.plot")
    def plot(self, path: str | os.PathLike[str], title: str = "") -> Path:
        """Draws the learning curves, training solid and validation dashed, a panel a quantity; needs matplotlib.

        Returns:
          The picture's path.

        Raises:
          ConfigError: there is no epoch to draw, or ``path`` is none.
          DependencyError: matplotlib is not installed.
        """
        if not self.records:
            raise ConfigError("there is nothing to draw, no epoch was completed")
        columns = {name: self[name] for name in self.names}
        measured = [n for n in columns if f"validation_{n}" in columns or n == "loss"]
        picture, panels = figure(len(measured), columns=len(measured), height=3.2)
        picture.suptitle(title)
        marker = "o" if len(self) == 1 else None
        for axes, name in zip(panels, measured, strict=True):
            axes.plot(columns["epoch"], columns[name], "k-", marker=marker, label="training")
            shown = columns[name]
            if f"validation_{name}" in columns:
                axes.plot(columns["epoch"], columns[f"validation_{name}"], "k--", marker=marker, label="validation")
                shown = np.concatenate([shown, columns[f"validation_{name}"]])
            positive = shown[np.isfinite(shown)]
            if name == "loss" and positive.size and positive.min() > 0:
                axes.set_yscale("log")
            axes.set(xlabel="epoch", ylabel=name)
            axes.legend()
        return saved(picture, path)


class Log:
    """A file of records to which a run appends, so that an epoch costs a line and not the history.

    Args:
      path: of the file.

    Attributes:
      seal: how much was written: ``records``, ``bytes``, and the ``crc32`` of these bytes. It stands in a checkpoint
        for the history itself, and `read` compares.
    """

    def __init__(self, path: Path):
        self.path = path
        self.seal = {"records": 0, "bytes": 0, "crc32": 0}
        self._file: IO[bytes] | None = None

    def begin(self, history: History) -> None:
        """Writes what there is already, in one step, in place of what lies there; `append` goes on from it."""
        raw = b"".join(map(_line, history))
        _atomic.write(self.path, raw)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (it stays open while the run lasts)
        self._count(len(history), raw)

    def append(self, history: History) -> None:
        """Writes the records that came since."""
        if self._file is None:  # another process writes it
            return
        new = history.records[self.seal["records"] :]
        raw = b"".join(map(_line, new))
        if raw:
            try:
                _atomic.write_all(self._file, raw)
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(self.seal["bytes"])
                raise
            self._count(len(new), raw)

    def sync(self) -> None:
        """Forces to disk what was written."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @staticmethod
    def read(path: Path, seal: Any) -> History:
        """The history that ``seal`` stood for; lines that came later are left out.

        Raises:
          CheckpointError: they are not the bytes that were written.
        """
        with _file.open_regular(path) as file:
            raw = file.read(seal["bytes"])
        if len(raw) != seal["bytes"] or zlib.crc32(raw) != seal["crc32"]:
            raise CheckpointError(f"{path} is damaged: its first {seal['bytes']:,} bytes are not what the run wrote")
        return History(_records(raw, path))

    def _count(self, records: int, raw: bytes) -> None:
        old = self.seal
        self.seal = {
            "records": old["records"] + records,
            "bytes": old["bytes"] + len(raw),
            "crc32": zlib.crc32(raw, old["crc32"]),
        }


@named("history")
def _line(record: Record) -> bytes:
    try:
        return json.dumps(record, default=_number).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the record of epoch {record.get('epoch')} cannot be written as JSON: {error}; keep numbers in "
            f"it, such as float(x)"
        ) from error


def _number(value: Any) -> Any:
    """A scalar of NumPy or JAX as Python's."""
    if getattr(value, "shape", None) == ():
        return value.item()
    raise TypeError(f"{type(value).__name__} is no number")


@named("history")
def _records(raw: bytes, source: Path) -> list[Record]:
    """The records of a file's bytes."""
    records, lines = [], raw.split(b"\n")
    for number, text in enumerate(lines, 1):
        if number == len(lines) and not text:
            break
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            record = None
            if number == len(lines):  # it does not end as a line does: a process was killed as it wrote
                break
        if not isinstance(record, dict):
            raise DataError(f"line {number} of {source} is no JSON object: {text[:60].decode(errors='replace')!r}")
        records.append(record)
    return records


def line(record: Record, epochs: int, seconds_left: float) -> str:
    """A record as a line to print."""
    skip = ("epoch", "step", "steps_per_second", "seconds", "grad_norm", "loss_deviation", "skipped")
    shown = {name: value for name, value in record.items() if name not in skip and name.split()[0] != "learning_rate"}
    parts = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items()]
    if record.get("skipped"):
        count = int(record["skipped"])
        parts.append(f"{count} step{'s' if count > 1 else ''} skipped (not finite)")
    width = len(str(epochs))
    return (
        f"epoch {int(record['epoch']):{width}}/{epochs}  {'  '.join(parts)}  "
        f"{record['steps_per_second']:.4g} steps/s  {duration(seconds_left)} left"
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"
