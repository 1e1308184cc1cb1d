"""What a run measured, epoch by epoch: kept, written as JSON lines, and drawn."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxnet import _optional as optional
from jaxnet.errors import ConfigError, DataError

Record = dict[str, float]
"""One epoch: ``epoch`` (from 1), ``step``, ``loss``, ... and ``validation_loss``, ... where there is validation."""


class History:
    """The records of a run, one an epoch.

    ``history["loss"]`` is a column as a float64 array, NaN where a record lacks it; iterating gives the records.

    Args:
      records: one dict of numbers an epoch.

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

    def __getitem__(self, name: str | int) -> Any:
        if isinstance(name, int):
            return self.records[name]
        if name not in self.names:
            raise ConfigError(f"history: no column {name!r}; there are {', '.join(self.names) or 'none'}")
        return np.array([record.get(name, math.nan) for record in self.records])

    def __repr__(self) -> str:
        return f"History({len(self)} epochs: {', '.join(self.names)})"

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, in the order in which they came."""
        return tuple(dict.fromkeys(name for record in self.records for name in record))

    def save(self, path: str | os.PathLike) -> None:
        """Writes one JSON object a line; NaN and Inf as JavaScript does, which `json` and pandas read."""
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_text(lines)
        temporary.replace(target)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "History":
        """Reads what `save`, or a run's ``log``, has written.

        Raises:
          DataError: a line is no JSON object.
        """
        records = []
        for number, line in enumerate(Path(path).read_text().splitlines(), 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                record = None
            if not isinstance(record, dict):
                raise DataError(f"history: line {number} of {path} is no JSON object: {line[:60]!r}")
            records.append(record)
        return cls(records)

    def plot(self, path: str | os.PathLike, title: str = "") -> Path:
        """Draws the learning curves, training solid and validation dashed, a panel a quantity; needs matplotlib.

        Returns:
          The picture's path.

        Raises:
          ConfigError: there is no epoch to draw.
        """
        if not self.records:
            raise ConfigError("history: there is nothing to draw, no epoch was completed")
        columns = {name: self[name] for name in self.names}
        measured = [n for n in columns if f"validation_{n}" in columns or n == "loss"]
        new_figure = optional.load("history: a picture", "matplotlib.figure").Figure
        figure = new_figure(figsize=(4.2 * len(measured), 3.2), layout="constrained")
        figure.suptitle(title)
        marker = "o" if len(self) == 1 else None
        for axes, name in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True):
            axes.plot(columns["epoch"], columns[name], "k-", marker=marker, label="training")
            shown = columns[name]
            if f"validation_{name}" in columns:
                axes.plot(columns["epoch"], columns[f"validation_{name}"], "k--", marker=marker, label="validation")
                shown = np.concatenate([shown, columns[f"validation_{name}"]])
            positive = shown[np.isfinite(shown)]
            if name == "loss" and positive.size and positive.min() > 0:
                axes.set_yscale("log")
            axes.set(xlabel="epoch", ylabel=name)
            axes.grid(alpha=0.3)
            axes.legend()
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        return path


def line(record: Record, epochs: int, seconds_left: float) -> str:
    """A record as a line to print."""
    skip = ("epoch", "step", "steps_per_second", "seconds", "grad_norm", "loss_deviation", "skipped")
    parts = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in record.items() if name not in skip]
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
