"""What the data show: values that are not finite, units of measurement, labels (4.6.2)."""

import math

import jax
import numpy as np

from jaxnet._tables import few
from jaxnet.diagnostics._arrays import is_floating
from jaxnet.diagnostics.facts import Facts
from jaxnet.diagnostics.layer_report import LayerReport
from jaxnet.diagnostics.rules.rule import Place, Verdict, limits, remedies, rule, verdict
from jaxnet.diagnostics.samples import Samples
from jaxnet.diagnostics.suspect_labels import NEIGHBOURS
from jaxnet.diagnostics.verdict import remedy


@rule(Place.LEFT_OUT, 1.0)
def non_finite_data(facts: Facts) -> Verdict | None:
    """NaN or Inf among the samples."""
    return _non_finite(facts.given, "", "drop_samples")


@rule(Place.LEFT_OUT, 1.0)
def non_finite_validation(facts: Facts) -> Verdict | None:
    """NaN or Inf among the samples of validation."""
    return _non_finite(facts.held_out, "validation ", "drop_validation_samples")


def _non_finite(samples: Samples, which: str, action: str) -> Verdict | None:
    bad, total = samples.bad, len(samples.bad) + len(samples.numbers)
    if not len(bad):
        return None
    ending, verb = ("s", "hold") if len(bad) > 1 else ("", "holds")
    return verdict(
        "non_finite_data",
        f"{which}sample{ending} {few(bad, 8)} {verb} NaN or Inf, {len(bad)} of {total}",
        "Missing values, a division by zero or an overflow where the data were made; one such value makes the gradient "
        "of its whole batch NaN",
        remedies((action, bad.tolist())),
    )


@rule(Place.SCALE, 0.95)
def unnormalized_input(facts: Facts) -> Verdict | None:
    """The first layer with a kernel sees numbers far from mean 0 and variance 1, and no norm follows it."""
    report = facts.before
    rms, mean, small = _input(facts.x, report)
    if not (rms > limits.INPUT_RMS or small) or (len(report.kernels) and report.normed(report.kernels[0])):
        return None
    limit = f"below {1 / limits.INPUT_RMS:g}" if small else f"above {limits.INPUT_RMS:g}"
    saturated = report.bounded
    tail = f"; {saturated[0]:.0%} of the first bounded activation's outputs are at its bounds" if saturated.size else ""
    return verdict(
        "unnormalized_input",
        f"root mean square {rms:.3g} ({limit}), mean {mean:.3g}{tail}",
        "Units of measurement that the initialization does not know",
        remedies("standardize_input", "normalize", "use_rectifiers"),
    )


def _input(x: object, report: LayerReport) -> tuple[float, float, bool]:
    """Root mean square and mean of what the first kernel sees, and whether it is far too small."""
    floating = [leaf.astype(np.float64) for leaf in jax.tree.leaves(x) if is_floating(leaf)]
    if not floating:
        return 1.0, 0.0, False

    def scale(x):
        return float(np.sqrt(np.mean(np.square(x))))

    furthest = max(floating, key=lambda x: abs(math.log(max(scale(x), 1e-30))))  # of several
    rms, mean = scale(furthest), float(furthest.mean())
    filled = rms / math.sqrt(max(float(np.mean(furthest != 0)), 1e-12))  # of what is not 0: one-hot is not small
    row = int(report.kernels[0]) - 1 if len(report.kernels) else -1
    if row >= 0 and np.isfinite(report.deviation[row]):
        mean = float(report.mean[row])
        rms = math.hypot(mean, float(report.deviation[row]))
    return rms, mean, max(rms, filled) < 1 / limits.INPUT_RMS


@rule(Place.SCALE, 0.9)
def unnormalized_target(facts: Facts) -> Verdict | None:
    """So are the targets of a regression, and the run has not trained."""
    target = facts.target
    if facts.trained or not is_floating(target) or (target.min() >= 0 and target.max() <= 1):  # shares, or classes
        return None
    target = target.astype(np.float64)
    mean, deviation = float(target.mean()), float(np.sqrt(np.mean(np.square(target - target.mean(0)))))
    if abs(mean) <= limits.INPUT_RMS and limits.INPUT_RMS >= deviation >= 1 / limits.INPUT_RMS:
        return None
    return verdict(
        "unnormalized_target",
        f"mean {mean:.3g}, deviation {deviation:.3g} (limits {limits.INPUT_RMS:g} for either, "
        f"{1 / limits.INPUT_RMS:g} for the deviation)",
        "Units of measurement that the initialization does not know: the last layer has far to go, and "
        "gradients are as large or small as the unit",
        remedies("standardize_target"),
    )


@rule(Place.LABELS, 0.8)
def wrong_labels(facts: Facts) -> Verdict | None:
    """Many labels of a classification are contradicted by the network and by their neighbours."""
    wrong, audited = facts.suspects
    share = len(wrong) / max(audited, 1)
    if share <= limits.WRONG_LABELS:
        return None
    look = (
        f"Look at these {len(wrong)} samples first: classes that overlap look the same; drop or correct what is wrong: "
        f"{few(wrong, 8)}."
    )
    return verdict(
        "wrong_labels",
        f"{share:.0%} of {audited} labels are contradicted by the network at its best, and so by the "
        f"{NEIGHBOURS} nearest other samples (limit {limits.WRONG_LABELS:.0%})",
        "Labels that are wrong, or classes that overlap, since these look the same: look at the samples first",
        (remedy("drop_samples", wrong)._replace(sentence=look), remedy("regularize")),
    )
