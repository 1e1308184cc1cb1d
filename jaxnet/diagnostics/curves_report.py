"""What learning curves alone tell (4.6.2)."""

import numpy as np

from jaxnet import _checks_named as checks
from jaxnet.diagnostics import thresholds as limits
from jaxnet.diagnostics.verdict import Verdict, remedies
from jaxnet.errors import DataError
from jaxnet.training.history import History

# How sure a verdict from curves can be: another cause can always draw the same curve.
_SURE, _LIKELY, _HINT = 0.8, 0.7, 0.5


def curves_report(history: History, *, baseline: float | None = None, batch_size: int | None = None) -> list[Verdict]:
    """Reads over- and underfitting, divergence, plateaus, noise and a wrong rate off the learning curves.

    Curves that are fine give the verdict "healthy". The thresholds are in `diagnostics.thresholds`, most of them
    ratios of losses: those must be positive. Steps that were skipped are no divergence while they are the fewer, since
    a loss scale of float16 makes some by design.

    Args:
      history: of at least three records, with "loss", and if there are any "validation_loss", "loss_deviation" and
        "skipped". A column "training_loss", the loss of the training set in evaluation, is read instead of "loss".
      baseline: the loss of the best constant prediction, that of a network which has learned nothing; the first
        record's loss unless given, which is too low if much was learned in the first epoch.
      batch_size: of the run, to say which would be larger.

    Returns:
      Verdicts, the most certain first.

    Raises:
      DataError: fewer than three records, or losses below 0 or that start at 0.

    Example:
      >>> from jaxnet import diagnostics
      >>> from jaxnet.training import History
      >>> losses = [(1.0, 1.1), (0.3, 0.8), (0.1, 0.9), (0.02, 1.2)]
      >>> curves = History([{"epoch": i, "loss": a, "validation_loss": b} for i, (a, b) in enumerate(losses, 1)])
      >>> [verdict.name for verdict in diagnostics.curves_report(curves)]
      ['overfitting']

    Source: chapter 4.6.2.
    """
    who = "curves_report"
    if len(history) < 3:
        raise DataError(f"{who}: at least three records are needed to see a curve, got {len(history)}; train longer")
    if baseline is not None:
        baseline = checks.number(who, "baseline", baseline, low=0, open_low=True)
    loss = history["training_loss" if "training_loss" in history.names else "loss"]
    validation = history["validation_loss"] if "validation_loss" in history.names else np.zeros(0)
    positive(who, loss, validation)
    finite = loss[np.isfinite(loss)]
    first = float(finite[0]) if finite.size else np.nan
    if baseline is None and first == 0:
        raise DataError(
            f"{who}: the loss starts at 0, and ratios of losses need positive ones; add a constant, or give a baseline"
        )
    start = first if baseline is None else baseline
    skipped = history["skipped"] if "skipped" in history.names else np.zeros(len(loss))
    taken = history["step"][-1] - history["step"][-2] if "step" in history.names else skipped.max()
    lost = validation.size > 0 and not np.isfinite(validation[-1])
    found: list[Verdict] = []
    if not np.isfinite(loss[-1]) or lost or skipped[-1] > 0.5 * taken or loss[-1] > limits.RISE * max(start, first):
        steps = f", {skipped.sum():.0f} steps were not finite" if skipped.sum() else ""
        held_out = f", that of validation to {validation[-1]:.3g}" if lost else ""
        found.append(
            Verdict(
                "divergence",
                _SURE,
                f"the loss went from {start:.3g} to {loss[-1]:.3g}{held_out}{steps} "
                f"(limit {limits.RISE:g} times its start)",
                "Steps too large for the curvature, or a gradient that explodes",
                remedies(("scale_rate", 0.1), "clip", "initialize", "normalize"),
            )
        )
        return found
    tail = max(len(loss) // 6, 1)
    end = float(np.median(loss[-tail:]))
    left = end / start
    third = max(len(loss) // 3, 1)
    fall = (np.median(loss[-third - 1 :][:2]) - end) / start
    flat = fall < limits.PLATEAU
    text = f"the loss ends at {left:.0%} of {'the best constant prediction' if baseline else 'its start'} ({end:.3g})"
    if validation.size:
        last = float(np.median(validation[-tail:]))
        gap = (last - end) / start
        if gap > limits.GAP and left < 1:  # what is worse than a constant has learned nothing by heart
            best = int(np.nanargmin(validation))
            found.append(
                Verdict(
                    "overfitting",
                    _SURE,
                    f"validation loss {last:.3g} against {end:.3g} in training, a gap of {gap:.2f} of {start:.3g} "
                    f"(limit {limits.GAP:g}); validation was best in record {best + 1} of {len(loss)}, "
                    f"{validation[best]:.3g}",
                    "The network learns its samples by heart: too few of them for its size",
                    remedies("more_data", "regularize", "shrink"),
                )
            )
    rising = end > limits.RISE * np.nanmin(loss) and end - np.nanmin(loss) > limits.PLATEAU * start
    if rising:
        found.append(
            Verdict(
                "rate_too_large",
                _LIKELY,
                f"the loss rose from {np.nanmin(loss):.3g} to {end:.3g}, more than {limits.RISE:g} times",
                "The steps overshoot",
                remedies(("scale_rate", 0.1), "clip"),
            )
        )
    if left > limits.TRAINED and not found:
        deviation = history["loss_deviation"][-1] / start if "loss_deviation" in history.names else 0.0
        middle = len(loss) // 2
        first_half, second_half = loss[0] - loss[middle], loss[middle] - loss[-1]
        if left > limits.STUCK and second_half > 0.5 * first_half > 0:
            found.append(
                Verdict(
                    "rate_too_small",
                    _HINT,
                    f"{text}, and fell by {second_half:.2g} in the second half, {first_half:.2g} in the first",
                    "The steps are so small that the curve is still a straight line",
                    remedies(("scale_rate", 10.0), "train_longer"),
                )
            )
        if deviation > limits.NOISE:
            found.append(
                Verdict(
                    "noisy_gradient",
                    _HINT,
                    f"{text}, and varies by {deviation:.0%} from batch to batch (limit {limits.NOISE:.0%})",
                    "Batches so small that each pulls elsewhere",
                    remedies(("larger_batch", 4 * (batch_size or 32)), ("scale_rate", 0.3)),
                )
            )
        if flat:
            found.append(
                Verdict(
                    "underfitting" if validation.size or baseline else "plateau",
                    _LIKELY,
                    f"{text}, more than {limits.TRAINED:.0%}, and over the last third it fell by {fall:.1%} "
                    f"(flat below {limits.PLATEAU:.0%})",
                    "The network cannot represent the task, or the data do not determine the target",
                    remedies("widen", ("scale_rate", 3.0), "normalize"),
                )
            )
        elif not found:
            found.append(
                Verdict(
                    "not_converged",
                    _LIKELY,
                    f"{text}, more than {limits.TRAINED:.0%}, and over the last third it still fell by {fall:.1%}",
                    "Too few steps",
                    remedies("train_longer", ("scale_rate", 3.0)),
                )
            )
    if not found:
        found.append(Verdict("healthy", _LIKELY, text, "Nothing in the curves is out of order"))
    return sorted(found, key=lambda verdict: -verdict.certainty)


def positive(who: str, *curves: np.ndarray) -> None:
    """Refuses losses below 0, of which ratios say nothing."""
    for curve in curves:
        if np.any(curve < 0):
            raise DataError(
                f"{who}: a loss of {float(np.nanmin(curve)):.3g} is below 0, and ratios of losses need positive ones; "
                f"add a constant to the loss"
            )
