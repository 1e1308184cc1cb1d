"""What a rule is: a function of the facts that knows one thing that can be wrong; and all that it is written with."""

import enum
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from jaxnet.diagnostics import thresholds as limits
from jaxnet.diagnostics.verdict import Remedy, Verdict, remedies

__all__ = ["Place", "Rule", "Verdict", "limits", "remedies", "rule", "rules_in", "verdict"]


class Place(enum.IntEnum):
    """Where a verdict stands in the chain of causes: it may be the consequence of any at an earlier place."""

    SCALE = 0
    """Of inputs, targets and weights."""
    GRADIENT = 1
    """What becomes of it over depth."""
    RATE = 2
    UNITS = 3
    LABELS = 4
    OUTCOME = 5
    """What the learning curves show in the end."""
    LEFT_OUT = 6
    """Samples without which the rest is diagnosed: they explain nothing of it."""


class Rule(NamedTuple):
    """A function of the facts, and what the ranking needs to know of it.

    Attributes:
      look: ``facts -> Verdict | None``.
      place: of its verdict in the chain of causes.
      certainty: of its verdict: it goes by the kind of evidence.
      curves_alone: whether it is a guess from curves, for want of the experiments that `diagnose` makes.
    """

    look: Callable[[Any], Verdict | None]
    place: Place
    certainty: float
    curves_alone: bool

    def __call__(self, facts: Any) -> Verdict | None:
        found = self.look(facts)
        return found and found._replace(certainty=self.certainty)


def rule(
    place: Place, certainty: float, *, curves_alone: bool = False
) -> Callable[[Callable[[Any], Verdict | None]], Rule]:
    """Makes a function a rule of the module in which it stands."""
    return lambda look: Rule(look, place, certainty, curves_alone)


def verdict(name: str, evidence: str, cause: str, remedies: tuple[Remedy, ...]) -> Verdict:
    """A verdict as certain as its rule."""
    return Verdict(name, math.nan, evidence, cause, remedies)


def rules_in(*modules: ModuleType) -> tuple[Rule, ...]:
    """The rules of some modules, in the order in which they are written."""
    return tuple(thing for module in modules for thing in vars(module).values() if isinstance(thing, Rule))
