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

    OUTPUT = 0
    """What the output and the loss can represent, and whether there is a gradient."""
    SCALE = 1
    """Of inputs, targets and weights."""
    GRADIENT = 2
    """What becomes of it over depth."""
    EVALUATION = 3
    """Whether what is evaluated is what was trained."""
    RATE = 4
    NETWORK = 5
    """What it is made of, and how it is held back."""
    UNITS = 6
    LABELS = 7
    OUTCOME = 8
    """What the learning curves show in the end."""
    LEFT_OUT = 9
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
    every = (thing for module in modules for thing in vars(module).values() if isinstance(thing, Rule))
    return tuple({rule.look: rule for rule in every}.values())  # each once, though other files ask it too
