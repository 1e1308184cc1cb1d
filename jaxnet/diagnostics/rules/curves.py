"""What the learning curves show (4.6.2). Another cause can always draw the same curve: no verdict is surer than 0.8."""

import numpy as np

from jaxnet.diagnostics.facts import Curves
from jaxnet.diagnostics.rules.rule import Place, Verdict, limits, remedies, rule, verdict


@rule(Place.OUTCOME, 0.8)
def divergence(curves: Curves) -> Verdict | None:
    """The loss, or that of validation, is not finite in the end, most steps were skipped, or the loss has grown."""
    last, skipped = curves.loss[-1], curves.skipped
    lost = curves.validation.size > 0 and not np.isfinite(curves.validation[-1])
    grown = last > limits.RISE * max(curves.start, curves.first)
    if np.isfinite(last) and not (lost or grown or skipped[-1] > 0.5 * curves.steps_a_record):
        return None
    steps = f", {skipped.sum():.0f} steps were not finite" if skipped.sum() else ""
    held_out = f", that of validation to {curves.validation[-1]:.3g}" if lost else ""
    return verdict(
        "divergence",
        f"the loss went from {curves.start:.3g} to {last:.3g}{held_out}{steps} (limit {limits.RISE:g} times its start)",
        "Steps too large for the curvature, or a gradient that explodes",
        remedies(("scale_rate", 0.1), "clip", "initialize", "normalize"),
    )


@rule(Place.OUTCOME, 0.8)
def overfitting(curves: Curves) -> Verdict | None:
    """Validation ends far above training. What is worse than a constant has learned nothing by heart."""
    validation, end, start = curves.validation, curves.end, curves.start
    if divergence(curves) or not validation.size or not (curves.gap > limits.GAP and curves.left < 1):
        return None
    best = int(np.nanargmin(validation))
    return verdict(
        "overfitting",
        f"validation loss {curves.validation_end:.3g} against {end:.3g} in training, a gap of {curves.gap:.2f} of "
        f"{start:.3g} (limit {limits.GAP:g}); validation was best in record {best + 1} of {len(validation)}, "
        f"{validation[best]:.3g}",
        "The network learns its samples by heart: too few of them for its size",
        remedies("more_data", "regularize", "shrink"),
    )


@rule(Place.RATE, 0.7, curves_alone=True)
def rate_too_large(curves: Curves) -> Verdict | None:
    """The loss ends above its own minimum."""
    if divergence(curves):
        return None
    end, lowest = curves.end, np.nanmin(curves.loss)
    if not (end > limits.RISE * lowest and end - lowest > limits.PLATEAU * curves.start):
        return None
    return verdict(
        "rate_too_large",
        f"the loss rose from {lowest:.3g} to {end:.3g}, more than {limits.RISE:g} times",
        "The steps overshoot",
        remedies(("scale_rate", 0.1), "clip"),
    )


def _untrained(curves: Curves) -> bool:
    """Whether the loss ends high, and not for one of the reasons above."""
    above = any(known(curves) for known in (divergence, overfitting, rate_too_large))
    return curves.left > limits.TRAINED and not above


@rule(Place.RATE, 0.5, curves_alone=True)
def rate_too_small(curves: Curves) -> Verdict | None:
    """Next to nothing was learned, along a line that is straight to the end."""
    if not _untrained(curves) or not curves.left > limits.STUCK:
        return None
    loss, middle = curves.loss, len(curves.loss) // 2
    first_half, second_half = loss[0] - loss[middle], loss[middle] - loss[-1]
    if not second_half > 0.5 * first_half > 0:
        return None
    return verdict(
        "rate_too_small",
        f"{curves.ending}, and fell by {second_half:.2g} in the second half, {first_half:.2g} in the first",
        "The steps are so small that the curve is still a straight line",
        remedies(("scale_rate", 10.0), "train_longer"),
    )


@rule(Place.EVALUATION, 0.85)
def evaluation_differs(curves: Curves) -> Verdict | None:
    """The same samples have a far larger loss in evaluation than in training."""
    seen = both_losses(curves)
    if seen is None or not seen[1] - seen[0] > limits.GAP * curves.start:
        return None
    return of_evaluation(*seen)


def both_losses(curves: Curves) -> tuple[float, float] | None:
    """The loss of the training set in training and in evaluation, if that is much larger."""
    if not {"loss", "training_loss"} <= set(curves.history.names):
        return None
    trained = float(np.median(curves.history["loss"][-3:]))
    evaluated = float(np.median(curves.history["training_loss"][-3:]))
    return (trained, evaluated) if trained < limits.EVALUATION * evaluated else None


def of_evaluation(trained: float, evaluated: float, more: str = "") -> Verdict:
    """The verdict, with ``more`` evidence."""
    return verdict(
        "evaluation_differs",
        f"the loss of the training set is {trained:.3g} as the network runs in training, and {evaluated:.3g} in "
        f"evaluation (limit {limits.EVALUATION:.0%}){more}",
        "The averages that batch norm uses in evaluation are not those of the data: a decay so near 1 that they do not "
        "follow, batches of a few samples, or a loop that leaves the state as it was or gives a wrong train flag. In a "
        "network without batch norm, a loss that depends on which samples stand together: look at the axes that it "
        "normalizes or averages over",
        remedies("reestimate"),
    )


@rule(Place.OUTCOME, 0.5)
def noisy_gradient(curves: Curves) -> Verdict | None:
    """The loss varies from batch to batch."""
    if not _untrained(curves) or not curves.deviation > limits.NOISE:
        return None
    return verdict(
        "noisy_gradient",
        f"{curves.ending}, and varies by {curves.deviation:.0%} from batch to batch (limit {limits.NOISE:.0%})",
        "Batches so small that each pulls elsewhere",
        remedies(("larger_batch", 4 * (curves.batch_size or 32)), ("scale_rate", 0.3)),
    )


@rule(Place.OUTCOME, 0.7)
def no_progress(curves: Curves) -> Verdict | None:
    """The curve is flat where no network is too small: above what the last layer's bias alone would reach."""
    if not _untrained(curves) or not curves.fall < limits.PLATEAU:
        return None
    if not curves.baseline or not curves.left > 1 + limits.PLATEAU:
        return None
    return verdict(
        "no_progress",
        f"{curves.ending}, which the last layer's bias alone would reach, and over the last third it fell by "
        f"{curves.fall:.1%} (flat below {limits.PLATEAU:.0%})",
        "The training got nowhere, whatever the network could represent: steps too small, too large or too noisy",
        remedies("plain_optimizer", "initialize", "normalize"),
    )


@rule(Place.OUTCOME, 0.7)
def underfitting(curves: Curves) -> Verdict | None:
    """The curve is flat before the run has trained; without validation or a baseline it is but a plateau."""
    if not _untrained(curves) or not curves.fall < limits.PLATEAU or no_progress(curves):
        return None
    return verdict(
        "underfitting" if curves.validation.size or curves.baseline else "plateau",
        f"{curves.ending}, more than {limits.TRAINED:.0%}, and over the last third it fell by {curves.fall:.1%} "
        f"(flat below {limits.PLATEAU:.0%})",
        "The network cannot represent the task, or the data do not determine the target",
        remedies("widen", ("scale_rate", 3.0), "normalize"),
    )


@rule(Place.OUTCOME, 0.7)
def not_converged(curves: Curves) -> Verdict | None:
    """The run has not trained, the curve still falls, and nothing else is wrong with it."""
    others = (rate_too_small, noisy_gradient, no_progress, underfitting)
    if not _untrained(curves) or any(known(curves) for known in others):
        return None
    return verdict(
        "not_converged",
        f"{curves.ending}, more than {limits.TRAINED:.0%}, and over the last third it still fell by {curves.fall:.1%}",
        "Too few steps",
        remedies(("train_longer", steps_needed(curves)), ("scale_rate", 3.0)),
    )


def steps_needed(curves: Curves) -> int | None:
    """After how many steps the run has trained if the logarithm of the loss goes on falling as over the last half."""
    if "step" not in curves.history.names:
        return None
    half = len(curves.loss) // 2
    loss, steps = curves.loss[half:], curves.history["step"][half:]
    if len(loss) < 3 or not (np.isfinite(loss) & (loss > 0)).all():
        return None
    slope, height = np.polyfit(steps, np.log(loss), 1)
    if slope >= 0:
        return None
    needed = max(float((np.log(limits.TRAINED * curves.start) - height) / slope), float(steps[-1]))
    if needed > limits.FAR * float(steps[-1]):
        return None
    digits = 10 ** max(int(np.log10(needed)) - 1, 0)
    return int(np.ceil(needed / digits) * digits)
