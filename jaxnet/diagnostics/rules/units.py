"""Which units are dead (4.2.1). In deep narrow networks a layer may have half of its units dead and enough alive."""

import numpy as np

from jaxnet.diagnostics.facts import Facts
from jaxnet.diagnostics.layer_report import LayerReport
from jaxnet.diagnostics.rules.rule import Place, Verdict, limits, remedies, rule, verdict


def _worst(report: LayerReport) -> int | None:
    """The row of the rectifier with the largest share of dead units, if that is too large."""
    shares = np.nan_to_num(report.dead)
    return int(shares.argmax()) if shares.max(initial=0) >= limits.DEAD else None


@rule(Place.UNITS, 0.9)
def born_dead(facts: Facts) -> Verdict | None:
    """Half of the units of a rectifier are 0 on the whole batch before the first step."""
    report, worst = facts.before, _worst(facts.before)
    if facts.trained or worst is None:
        return None
    return verdict(
        "dead_units",
        f"{report.dead[worst]:.0%} of the units of {report.labels[worst]} are 0 on the whole batch before the first "
        f"step (limit {limits.DEAD:.0%})",
        "They were born dead: large negative biases, or layers so narrow that all units are off at once",
        remedies("initialize", "use_leaky_rectifiers", "normalize", "widen"),
    )


@rule(Place.UNITS, 0.75)
def died(facts: Facts) -> Verdict | None:
    """They were not born so, but are in the end."""
    report, worst = facts.after, _worst(facts.after)
    if facts.trained or worst is None or born_dead(facts):
        return None
    return verdict(
        "dead_units",
        f"{report.dead[worst]:.0%} of the units of {report.labels[worst]} are 0 on the whole batch at the end, "
        f"{facts.before.dead[worst]:.0%} before the first step (limit {limits.DEAD:.0%})",
        "They died in training: a step too large has pushed their biases below every input",
        remedies(("scale_rate", 0.1), "use_leaky_rectifiers", "clip", "normalize"),
    )
