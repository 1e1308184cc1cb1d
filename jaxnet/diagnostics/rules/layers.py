"""What the layers do: to their units (4.2.1), and to signals and gradients before the first step (4.6.2, 4.6.3).

In deep narrow networks a layer may have half of its units dead and enough alive.
"""

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
    if facts.trained or worst is None or (_one_sign(facts.x) and report.dead[worst] < limits.BORN_DEAD):
        return None
    return verdict(
        "dead_units",
        f"{report.dead[worst]:.0%} of the units of {report.labels[worst]} are 0 on the whole batch before the first "
        f"step (limit {limits.DEAD:.0%})",
        "They were born dead: large negative biases, or layers so narrow that all units are off at once",
        remedies("initialize", "use_leaky_rectifiers", "normalize", "widen"),
    )


def _one_sign(x: object) -> bool:
    """Whether each input is one number or two, and all are of one sign."""
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.shape[1] > 2:
        return False
    return bool((x >= 0).all() or (x <= 0).all())


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


@rule(Place.SCALE, 0.95)
def initialization(facts: Facts) -> Verdict | None:
    """The median layer changes its input's deviation too much. A norm undoes the scale of the layer before it."""
    report = facts.before
    gains = np.asarray(report.gain)[[i for i in report.kernels if not report.normed(i)]]
    median = np.median(gains) if gains.size else 1.0
    if limits.GAIN >= median >= 1 / limits.GAIN:
        return None
    large = median > 1
    limit = f"above {limits.GAIN:g}" if large else f"below {1 / limits.GAIN:g}"
    return verdict(
        f"initialization_too_{'large' if large else 'small'}",
        f"the median layer multiplies its input's deviation by {median:.3g} ({limit}; 1 to 1.41 keeps it)",
        "Weights drawn too large: signals grow from layer to layer, and activations saturate or die"
        if large
        else "Weights drawn too small: signals and gradients fade from layer to layer",
        remedies("initialize", "normalize"),
    )


@rule(Place.GRADIENT, 0.9)
def vanishing_gradient(facts: Facts) -> Verdict | None:
    """The gradient at the first layer is far smaller than at the last: eq. 4.24, Glorot and Bengio 2010."""
    report = facts.before
    if not (len(report.kernels) > 1 and report.gradient_ratio < limits.GRADIENT_RATIO):
        return None
    saturating = report.bounded.size > 0
    return verdict(
        "vanishing_gradient",
        f"{_over_depth(report)} (limit {limits.GRADIENT_RATIO:g})",
        "Backpropagation multiplies by one derivative a layer"
        + (", and those of sigmoid and tanh are small: at most 1/4 for sigmoid" if saturating else ""),
        remedies("use_rectifiers" if saturating else "initialize", "normalize", "residual"),
    )


@rule(Place.GRADIENT, 0.9)
def exploding_gradient(facts: Facts) -> Verdict | None:
    """The gradient at the first layer is far larger than at the last, or values overflow on the way."""
    report, limit = facts.before, 1 / limits.GRADIENT_RATIO
    first, ratio = int(report.first_nonfinite), report.gradient_ratio
    overflow = first >= 0 or not np.isfinite(report.loss)
    if vanishing_gradient(facts) or not (overflow or (len(report.kernels) > 1 and ratio > limit)):
        return None
    place = f"values overflow from {report.labels[first]} on" if first >= 0 else ""
    far = f"{_over_depth(report)} (limit {limit:g})" if ratio >= 0 else ""
    return verdict(
        "exploding_gradient",
        "; ".join(filter(None, (place, far))) or f"the loss is {float(report.loss):g} before the first step",
        "Backpropagation multiplies by one matrix a layer, and these enlarge: harmless once, not many times",
        remedies("initialize", "normalize", "residual", "clip"),
    )


def _over_depth(report: LayerReport) -> str:
    """The gradient's norm at the first kernel and at the last."""
    first, *_, last = report.kernels
    gradient, ratio = report.activation_gradient, report.gradient_ratio
    at_first = f"{gradient[first]:.2g}" if ratio > 0 else "0"
    text = (
        f"the gradient's norm is {at_first} at {report.labels[first]} and {gradient[last]:.2g} at {report.labels[last]}"
    )
    return f"{text}: a factor of e^{-float(report.slope):.2g} a layer, {ratio:.2g} in all" if ratio > 0 else text
