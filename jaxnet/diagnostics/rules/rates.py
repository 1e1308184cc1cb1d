"""What other learning rates would have done (4.6.2)."""

import math

from jaxnet.diagnostics.facts import Facts
from jaxnet.diagnostics.rules.rule import Place, Verdict, limits, remedies, rule, verdict


@rule(Place.RATE, 0.85)
def another_rate(facts: Facts) -> Verdict | None:
    """Another rate gets much further in a quarter of the steps than this one in all."""
    if not facts.rates:
        return None
    end = facts.final if math.isfinite(facts.final) else math.inf
    factor = min(facts.rates, key=lambda f: facts.rates[f])
    if not facts.rates[factor] < limits.OTHER_RATE * end:
        return None
    large = factor < 1
    return verdict(
        f"rate_too_{'large' if large else 'small'}",
        f"at {factor:g} times the rate the training loss reaches {facts.rates[factor]:.3g} in a quarter of the steps, "
        f"at this rate {end:.3g} in all (a rate is wrong if another reaches {limits.OTHER_RATE:.0%} of it)",
        "The steps overshoot" if large else "The steps are too small to get anywhere",
        remedies(("scale_rate", factor), "clip" if large else "train_longer", "normalize"),
    )
