"""One rule a function, by what the rules look at. A new rule is a function under ``@rule`` in one of these files."""

from jaxnet.diagnostics.rules import curves, data, labels, layers, network, outputs, rates
from jaxnet.diagnostics.rules.rule import Place, Rule, rules_in

OF_CURVES = rules_in(curves)
"""The rules of `curves_report`; their facts are `Curves`."""

OF_RUNS = tuple(
    sorted(
        (rule for rule in rules_in(data, outputs, layers, rates, network, labels, curves) if not rule.curves_alone),
        key=lambda rule: rule.place,
    )
)
"""The rules of `diagnose`; their facts are `Facts`. Verdicts of one certainty are told in this order."""

__all__ = ["OF_CURVES", "OF_RUNS", "Place", "Rule"]
