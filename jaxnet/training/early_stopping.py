"""Stopping when a measure no longer improves (4.6.2)."""

import difflib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError
from jaxnet.training.history import Record


class EarlyStopping(NamedTuple):
    """Ends a run after ``patience`` epochs in a row without a new best, whose weights are then the result.

    With b the best value so far, a value is better if ``v < b - minimum_change``, or with "max" if ``v > b +
    minimum_change``; NaN never is.

    Attributes:
      patience: epochs to wait, at least 1.
      monitor: the column of the history to watch.
      mode: "min" if less is better, "max" if more is; need not be said of a column with "loss" or "error" in its name.
      minimum_change: by how much a value must be better than the best so far, at least 0.

    Raises:
      ConfigError: from `fit`, `train` and `sweep`, a value that makes no sense, a column that the history will not
        have, or one of validation where nothing is validated.

    Example:
      >>> from jaxnet.training import EarlyStopping
      >>> EarlyStopping(5, monitor="validation_accuracy", mode="max").patience
      5

    Source: chapter 4.6.2; Prechelt 1998, Early stopping - but when?
    """

    patience: int
    monitor: str = "validation_loss"
    mode: str | None = None
    minimum_change: float = 0.0


def checked(value: Any, has_validation: bool) -> EarlyStopping | None:
    """``early_stopping`` as given by a user: a patience, an `EarlyStopping`, or None."""
    if value is None:
        return None
    if not isinstance(value, EarlyStopping):
        value = EarlyStopping(value)
    checks.integer("early_stopping's patience", value.patience, minimum=1)
    if not isinstance(value.monitor, str):
        raise ConfigError(
            f"early_stopping's monitor must be the name of a column of the history, such as 'validation_loss', "
            f"got {value.monitor!r}"
        )
    if value.mode is not None:
        checks.choice("early_stopping's mode", value.mode, ("min", "max"))
    checks.number("early_stopping's minimum_change", value.minimum_change, low=0)
    if value.monitor.startswith("validation_") and not has_validation:
        raise ConfigError(
            f"early stopping watches {value.monitor!r}, and there is no validation set; give validation=(x, y), "
            f"or EarlyStopping({value.patience}, monitor='loss')"
        )
    return value


def check_column(monitor: str, columns: Iterable[str], who: str = "early stopping") -> None:
    """Refuses to watch a column that the records will not have."""
    columns = list(columns)
    if monitor not in columns:
        near = difflib.get_close_matches(monitor, columns, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{who} watches {monitor!r}, and the history has only {', '.join(columns)}{hint}")


def check_mode(watch: EarlyStopping | None) -> None:
    """Refuses to watch a column of which it is not known whether less of it is better."""
    if watch is not None and watch.mode is None and not any(word in watch.monitor for word in ("loss", "error")):
        raise ConfigError(
            f"early stopping watches {watch.monitor!r}, of which less or more may be better; give "
            f"EarlyStopping({watch.patience}, {watch.monitor!r}, mode='max'), or mode='min'"
        )


class Best:
    """The best epoch so far by a column of the history, and for how many epochs there was no better."""

    def __init__(self, watch: EarlyStopping):
        self.watch = watch
        self.value, self.epoch, self.waited = math.nan, 0, 0

    @property
    def patience_ended(self) -> bool:
        """Whether there was no better for too long."""
        return self.waited >= self.watch.patience

    def improved(self, record: Record) -> bool:
        """Takes in an epoch; whether it is the new best."""
        monitor, mode = self.watch.monitor, self.watch.mode
        check_column(monitor, record)
        value = record[monitor]
        gain = (value - self.value) if mode == "max" else (self.value - value)
        if not math.isnan(value) and (math.isnan(self.value) or gain > self.watch.minimum_change):
            self.value, self.epoch, self.waited = value, int(record["epoch"]), 0
            return True
        self.waited += 1
        return False

    def save(self) -> dict[str, Any]:
        """What `restore` needs, as JSON."""
        watched = {"monitor": self.watch.monitor, "mode": self.watch.mode or "min", "patience": self.watch.patience}
        return watched | {"value": self.value, "epoch": self.epoch, "waited": self.waited}

    def restore(self, saved: dict[str, Any]) -> None:
        """Takes up what `save` returned."""
        self.value, self.epoch, self.waited = saved["value"], saved["epoch"], saved["waited"]
