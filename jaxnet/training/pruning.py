"""Which members of a sweep go on: those behind at a rung are dropped, and those that no longer improve stop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError
from jaxnet.training.early_stopping import EarlyStopping, check_column
from jaxnet.training.state import all_finite, copied


class Halving(NamedTuple):
    """Successive halving: at rungs, epochs r, r f, r f^2, ..., all but the best of each f members are dropped.

    After rung i there are ``members // f**(i + 1)`` left, at least one, and they are trained on in a program of that
    size. f = 3 with 27 members and 27 epochs trains 27 for one epoch, 9 for two more, 3 for six and one for eighteen.

    Attributes:
      factor: f, an integer of at least 2.
      first: r, the epoch of the first rung, at least 1; None for as many rungs as members and epochs allow, the last of
        them at an f-th of the epochs.

    Raises:
      ConfigError: from ``rungs`` and `sweep`, a factor below 2 or a first rung below 1; from `sweep`, one that drops
        none.

    Example:
      >>> from jaxnet.training import Halving
      >>> Halving(3).rungs(members=27, epochs=27)
      {1: 9, 3: 3, 9: 1}

    Source: Jamieson and Talwalkar 2015, arXiv 1502.07943, figure 3; the names of Li et al. 2016, arXiv 1603.06560.
    """

    factor: int = 3
    first: int | None = None

    def rungs(self, members: int, epochs: int) -> dict[int, int]:
        """By the epoch of each rung, how many members go on from it."""
        factor = checks.integer("halving's factor", self.factor, minimum=2)
        left = []
        while members > 1:
            members = max(members // factor, 1)
            left.append(members)
        if self.first is None:
            ends = [epochs // factor**i for i in range(len(left), 0, -1)]
        else:
            first = checks.integer("halving's first", self.first, minimum=1)
            ends = [first * factor**i for i in range(len(left))]
        return dict(zip([end for end in ends if 1 <= end < epochs], left, strict=False))


def checked(halving: Any, members: int, epochs: int) -> dict[int, int]:
    """The rungs of ``halving`` as given by a user: a factor, a `Halving`, or None."""
    if halving is None:
        return {}
    halving = halving if isinstance(halving, Halving) else Halving(halving)
    rungs = halving.rungs(members, epochs)
    if not rungs:
        since = "" if halving.first is None else f" from epoch {halving.first} on"
        raise ConfigError(
            f"halving by {halving.factor}{since} would drop none of {members} members in {epochs} epochs; give "
            f"more of either, or a smaller factor"
        )
    return rungs


class Pruning:
    """What each member of a sweep has come to, and which of them still train.

    Attributes:
      places: the members in the program, by their numbers.
      epochs: by member, for how many epochs it was trained.
    """

    def __init__(self, members: int, rungs: dict[int, int], watch: EarlyStopping | None, score: str):
        self.places, self.epochs = np.arange(members), np.zeros(members, int)
        self._rungs, self._watch = rungs, watch
        self._monitor = watch.monitor if watch is not None else score
        self._sign = -1 if watch is not None and watch.mode == "max" else 1
        self._going, self._dropped = np.ones(members, bool), np.zeros(members, bool)
        self._scores, self._waited = np.full(members, np.nan), np.zeros(members, int)
        self._weights: Any = None
        self._left: list[tuple[np.ndarray, Any]] = []

    @property
    def over(self) -> bool:
        """Whether no member goes on."""
        return not self._going.any()

    def record(self, measured: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """An epoch's measures with an entry a member, NaN for those that it did not train."""
        going, spread = self._going[self.places], {}
        if len(self.places) == len(self._going) and going.all():
            return measured
        for name, values in measured.items():
            spread[name] = np.full(len(self._going), np.nan, values.dtype)
            spread[name][self.places[going]] = values[going]
        return spread

    def after(self, epoch: int, measured: dict[str, np.ndarray], weights: Any) -> np.ndarray | None:
        """Takes in an epoch; where in the program those are that make up the next one, None for the same one.

        Args:
          epoch: its number, from 1.
          measured: by name, an entry a place of the program.
          weights: the members' parameters and states, stacked.
        """
        check_column(self._monitor, measured)
        mine, values = self._going[self.places], self._sign * measured[self._monitor].astype(np.float64)
        self.epochs[self.places[mine]] = epoch
        self._take(values, mine, weights)
        rung = self._rungs.get(epoch)
        if rung is not None:
            order = np.argsort(np.where(np.isfinite(values) & mine, values, np.inf), kind="stable")
            behind = self.places[order[rung:]]
            self._dropped[behind] |= self._going[behind]
            self._going[behind] = False
        going = self._going[self.places]
        # Every other size would be another program to compile.
        if going.all() or not going.any() or (rung is None and 2 * going.sum() > len(going)):
            return None
        self._leave(np.flatnonzero(~going))
        stay = np.flatnonzero(going)
        self._weights = jax.tree.map(lambda leaf: leaf[stay], self._weights)
        self.places = self.places[stay]
        return stay

    def _take(self, values: np.ndarray, mine: np.ndarray, weights: Any) -> None:
        """Keeps the weights that are the result: of the best epoch where one is watched for, else the last."""
        members = self.places
        if self._watch is None:
            self._scores[members[mine]] = values[mine]
            better = mine
        else:
            best = self._scores[members]
            with np.errstate(invalid="ignore"):  # of two that are infinite
                gains = best - values > self._watch.minimum_change
            better = mine & ~np.isnan(values) & (np.isnan(best) | gains)
            self._scores[members[better]] = values[better]
            self._waited[members] = np.where(better, 0, self._waited[members] + mine)
            self._going[members] &= self._waited[members] < self._watch.patience
        if better.all():
            self._weights = weights if self._watch is None else copied(weights)
        else:
            self._weights = _chosen(jnp.asarray(better), weights, weights if self._weights is None else self._weights)

    def _leave(self, rows: np.ndarray) -> None:
        self._left.append((self.places[rows], jax.tree.map(lambda leaf: leaf[rows], self._weights)))

    def result(self) -> tuple[Any, int]:
        """All members' parameters and states, stacked, and the best of those that were not dropped, -1 if none is."""
        if self._left:
            self._leave(np.arange(len(self.places)))
            back = np.argsort(np.concatenate([members for members, _ in self._left]))
            every = [weights for _, weights in self._left]
            weights = jax.tree.map(lambda *parts: jnp.concatenate(parts)[back], *every)
        else:
            weights = self._weights
        # A loss can be finite where parameters are not: an infinite bias before a relu.
        usable = np.isfinite(self._scores) & np.asarray(jax.vmap(all_finite)(weights[0]))
        usable = usable & ~self._dropped if (usable & ~self._dropped).any() else usable
        return weights, int(np.argmin(np.where(usable, self._scores, np.inf))) if usable.any() else -1


@jax.jit
def _chosen(which: jax.Array, new: Any, old: Any) -> Any:
    """Of stacked trees, the one's members or the other's."""
    return jax.tree.map(lambda a, b: jnp.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)
