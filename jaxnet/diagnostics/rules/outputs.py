"""What the output and the loss can represent at all, and whether a gradient reaches what is to learn (4.3, 4.5)."""

import math
from typing import Any

import numpy as np

from jaxnet.diagnostics._arrays import is_floating
from jaxnet.diagnostics.anatomy import is_flat
from jaxnet.diagnostics.facts import Facts
from jaxnet.diagnostics.refusals import one_order
from jaxnet.diagnostics.rules.rule import Place, Verdict, limits, remedies, rule, verdict
from jaxnet.diagnostics.trial import LOOKS
from jaxnet.diagnostics.verdict import remedy

Found = tuple[str, str, tuple[Any, ...]]
"""Evidence, cause and remedies."""


@rule(Place.OUTPUT, 0.97)
def wrong_output(facts: Facts) -> Verdict | None:
    """No network in front of this output and this loss can represent these targets."""
    looks = (
        _labels_outside, _one_output_for_classes, _constant, _column_against_row, _several_labels, _softmax_twice,
        _outside_bounds,
    )  # fmt: skip
    found = next((found for look in looks if (found := look(facts))), None)
    return found and verdict("wrong_output", *found)


def _labels_outside(facts: Facts) -> Found | None:
    values, outputs = facts.kind.values, facts.free.outputs
    if facts.kind.kind != "classes" or not values or facts.free.predicted is None or outputs < 2:
        return None
    if facts.free.predicted.ndim != np.ndim(facts.target) + 2 or values[-1] < outputs or not facts.free.blind:
        return None
    low, high = int(values[0]), int(values[-1])
    shifted = low > 0 and high - low < outputs
    inside = sum(value < outputs for value in values)
    if not shifted and inside > 1 and (outputs not in values or (facts.trained and inside == len(values) - 1)):
        return None  # labels that are left out on purpose
    return (
        f"the labels run from {low} to {high}, {outputs} outputs stand for the classes 0 to {outputs - 1}, and the "
        f"loss cannot tell {outputs} from {outputs + 1}",
        "Classes are counted from 0" if shifted else "Fewer outputs than classes",
        remedies(("shift_labels", low)) if shifted else remedies(("use_cross_entropy", high + 1)),
    )


def _one_output_for_classes(facts: Facts) -> Found | None:
    values, (low, high) = facts.kind.values, facts.free.bounds
    if len(values) < 3 or facts.free.outputs > 1 or not math.isfinite(high - low) or values[-1] <= high:
        return None
    if facts.free.predicted is None or facts.free.predicted[0].size != np.size(facts.free.target):
        return None
    if np.ptp(values) != len(values) - 1 or not _out_of_reach(facts):
        return None
    return (
        f"the targets are the {len(values)} whole numbers from {values[0]:g} to {values[-1]:g}, and one output between "
        f"{low:g} and {high:g} stands for them",
        f"{len(values)} classes, one output: a sigmoid tells two classes apart",
        remedies(("use_cross_entropy", len(values))),
    )


def _out_of_reach(facts: Facts) -> bool:
    """Whether targets outside the output's bounds are what keeps the loss high, or makes it fall below 0."""
    if facts.floor > limits.LEFT:
        return True
    return (facts.shifted or facts.floor < 0) and facts.free.falls_for_targets_outside


def _constant(facts: Facts) -> Found | None:
    free = facts.free
    if not free.constant or free.predicted is None:
        return None
    function = _function(facts)
    return (
        f"the prediction is {free.predicted.flat[0]:g}, whatever the layers before {function} give",
        "Softmax over one unit is always 1: of one number nothing is left to choose"
        if free.outputs == 1
        else "The output does not depend on what the network has learned",
        remedies(_other_output(facts)),
    )


def _column_against_row(facts: Facts) -> Found | None:
    predicted, target = facts.free.predicted, facts.target
    if facts.trained or predicted is None or not is_floating(target):
        return None
    one, other = predicted.shape[1:], np.shape(facts.free.target)
    if one == other or math.prod(one) != math.prod(other) or not one_order(one, other):
        return None
    if not facts.floor > limits.TRAINED:
        return None
    n, *rest = one
    of = ", ".join(["n", *map(str, rest)])
    return (
        f"predictions have the shape ({of}), targets ({', '.join(['n', *map(str, other[1:])])}"
        f"{',' * (len(other) == 1)}), and with {n} predictions that are free to choose the loss still has "
        f"{facts.floor:.0%} of the best constant prediction's",
        "The two are broadcast against each other: each prediction is compared with the targets of all samples, and "
        "the best that it can do is their mean",
        remedies(("reshape_target", tuple(rest))),
    )


def _several_labels(facts: Facts) -> Found | None:
    if facts.kind.kind != "several" or not (facts.free.sums_to_one or facts.free.shift_free):
        return None
    sums = np.asarray(facts.target, np.float64).sum(-1)
    if sums.min() > 0 and facts.trained:  # shares of what was chosen, as a multinomial likelihood has them
        return None
    return (
        f"a sample has {sums.min():g} to {sums.max():g} labels, and the outputs of one sample are made to sum to 1",
        "Softmax is for classes of which exactly one holds; here each label is a question of its own",
        remedies("use_sigmoid_cross_entropy"),
    )


def _softmax_twice(facts: Facts) -> Found | None:
    if not (facts.free.sums_to_one and facts.free.shift_free and facts.floor > limits.LEFT):
        return None
    return (
        f"the outputs of {_function(facts)} sum to 1, and the loss does not change if a number is added to all of "
        f"them: it applies softmax once more",
        "Softmax twice: the second sees numbers from 0 to 1 alone, and can never be sure of a class",
        remedies(_dropped(facts)),
    )


def _outside_bounds(facts: Facts) -> Found | None:
    target, predicted, (low, high) = facts.target, facts.free.predicted, facts.free.bounds
    if (facts.trained and not facts.shifted) or predicted is None or not is_floating(target):
        return None
    if predicted[0].size != np.size(facts.free.target):
        return None
    target = target.astype(np.float64)
    margin = 0.01 * np.ptp(target)
    outside = float(np.mean((target < low - margin) | (target > high + margin)))
    if outside <= limits.OUTSIDE or not _out_of_reach(facts):
        return None
    function = _function(facts)
    reach = f"between {low:g} and {high:g}" if math.isfinite(high - low) else (
        f"above {low:g}" if math.isfinite(low) else f"below {high:g}"
    )  # fmt: skip
    two = facts.kind.kind == "two values"
    return (
        f"{function} gives numbers {reach}, and {outside:.0%} of the targets, from {target.min():.3g} to "
        f"{target.max():.3g}, lie outside (limit {limits.OUTSIDE:.0%})",
        f"The two classes are written {facts.kind.values[0]:g} and {facts.kind.values[1]:g}, where this output and its "
        f"loss want 0 and 1"
        if two
        else "The output cannot reach the targets, whatever the network learns",
        remedies("use_sigmoid_cross_entropy")
        if two
        else remedies(_dropped(facts), *["standardize_target"] * (low < 0 < high)),  # else half of them stay outside
    )


@rule(Place.OUTPUT, 0.85)
def hardly_representable(facts: Facts) -> Verdict | None:
    """Even a free table in front of the output does not get below the share that counts as trained."""
    if facts.trained or wrong_output(facts) or not facts.floor > limits.TRAINED or not facts.free.resting:
        return None
    function = f"{_function(facts)} and " if facts.parts.tail else ""
    return verdict(
        "wrong_output",
        f"with one free row of numbers a sample in the place of all layers before {function}the loss, it still has "
        f"{facts.floor:.0%} of the best constant prediction's (limit {limits.TRAINED:.0%})",
        "This output and this loss do not fit these targets: no network in front of them could learn these; or the "
        "loss holds a part that does not depend on the prediction",
        remedies(remedy("change_loss", loss=_loss(facts)), *([_dropped(facts)] if facts.parts.tail else [])),
    )


@rule(Place.OUTPUT, 0.9)
def squares_of_classes(facts: Facts) -> Verdict | None:
    """A squared error of probabilities, where cross-entropy is seen to get further."""
    classes = facts.kind.kind in ("one hot", "two values") and facts.kind.values[0] == 0
    if facts.learned or not classes or not math.isfinite(sum(facts.free.bounds)) or not facts.free.squares:
        return None
    cure = _other_output(facts)
    outcome = facts.tried(cure)
    if outcome is None or not outcome.score > facts.trial.score + limits.SCORE:
        return None
    return verdict(
        "wrong_output",
        f"the loss is the squared error of numbers between 0 and 1, and with cross-entropy the accuracy is "
        f"{outcome.score:.2f} after {outcome.steps} steps, with this loss {facts.trial.score:.2f} after {facts.steps}",
        "Where such an output is far from its class, the gradient of the squared error is close to 0",
        remedies(cure),
    )


def rectified(facts: Facts) -> bool:
    """Whether a rectifier stands behind the last layer that learns."""
    return any(call.kind.rectifier for call in facts.parts.tail)


@rule(Place.OUTPUT, 0.9)
def rectified_output(facts: Facts) -> Verdict | None:
    """Nothing stands behind a rectifier but the loss, and without it the network gets further."""
    if not rectified(facts) or not facts.wanting or wrong_output(facts):
        return None
    cure = _dropped(facts)
    outcome = facts.tried(cure, LOOKS if facts.learned else None)
    if outcome is None or not facts.mends(outcome):
        return None
    if facts.learned and not outcome.score > facts.trial.score + limits.SCORE / 2:
        return None
    return verdict(
        "wrong_output",
        f"{_function(facts)} stands behind the last layer; without it the loss ends at {outcome.share:.0%} of the best "
        f"constant prediction's after {outcome.steps} steps, with it at {facts.left:.0%} after {facts.steps}",
        "An output that is 0 has no gradient, and never comes back",
        remedies(cure),
    )


@rule(Place.OUTPUT, 0.97)
def no_gradient(facts: Facts) -> Verdict | None:
    """Exactly no gradient comes through a layer, nor ever can."""
    if facts.free.constant:
        return None
    calls, labels = facts.parts.calls, facts.before.labels
    if facts.left <= limits.LEFT:  # what stands behind it was enough
        return None
    for i, call in enumerate(calls):
        cut = [labels.index(one.label) for one in calls[:i] if one.learns and one.label in labels]
        zero = cut and all(np.all(np.asarray(report.parameter_gradient)[cut] == 0) for report in facts.trial.reports)
        if zero and is_flat(call):
            return verdict(
                "no_gradient",
                f"the gradient is exactly 0 in {_several([labels[row] for row in cut])}, before the first step and "
                f"whenever it was looked at, and the derivative of {call.label} is 0 everywhere",
                "Argmax, rounding, comparing, casting to integers and jax.lax.stop_gradient let no gradient through: "
                "what stands before them never learns",
                remedies(remedy("let_gradient_through", layer=call.label)),
            )
    return None


@rule(Place.OUTPUT, 0.97)
def loss_without_gradient(facts: Facts) -> Verdict | None:
    """The loss has no derivative with respect to the prediction."""
    gradients = [np.asarray(report.parameter_gradient) for report in facts.trial.reports]
    if any(np.any(gradient[~np.isnan(gradient)] != 0) for gradient in gradients) or facts.free.has_gradient:
        return None
    return verdict(
        "no_gradient",
        f"the loss is {facts.final:.3g}, and its gradient is exactly 0 in every layer, and at random predictions too",
        "The loss compares, rounds or counts, as an accuracy does: a small change of the prediction changes nothing",
        remedies("differentiable_loss"),
    )


@rule(Place.OUTPUT, 0.97)
def nothing_moves(facts: Facts) -> Verdict | None:
    """There is a gradient, and the optimizer leaves all as it is; between the looks too."""
    reports = facts.trial.reports
    moved = [np.nan_to_num(np.asarray(report.update_ratio)) for report in reports]
    weights = [np.asarray(report.weight_norm) for report in reports]
    if not moved[0].size or any(np.any(ratio != 0) for ratio in moved):
        return None
    if not all(np.array_equal(weight, weights[0], equal_nan=True) for weight in weights):
        return None
    if not all(np.any(np.nan_to_num(np.asarray(report.parameter_gradient)) != 0) for report in reports):
        return None
    return verdict(
        "nothing_moves",
        "there is a gradient, every update is exactly 0 before the first step and whenever it was looked at, and no "
        "weight has changed",
        "A rate of 0 (a schedule that stays there), or an optimizer that leaves these parameters out",
        remedies("move_parameters"),
    )


def _function(facts: Facts) -> str:
    """What stands behind the last layer that learns, by its labels."""
    return " and ".join(call.label for call in facts.parts.tail) or "the last layer"


def _dropped(facts: Facts) -> Any:
    return remedy("drop_output_function", function=_function(facts))


def _other_output(facts: Facts) -> Any:
    """The output and the loss that fit the targets."""
    kind, values = facts.kind.kind, facts.kind.values
    if kind == "several" or (len(values) == 2 and kind != "one hot"):
        return remedy("use_sigmoid_cross_entropy")
    if kind == "one hot":
        return remedy("use_cross_entropy", int(np.shape(facts.target)[-1]))
    return remedy("use_cross_entropy", len(values)) if kind == "classes" and values else _dropped(facts)


def _loss(facts: Facts) -> str:
    return {
        "numbers": "losses.mse", "several": "losses.sigmoid_cross_entropy",
        "two values": "losses.sigmoid_cross_entropy",
    }.get(facts.kind.kind, "losses.softmax_cross_entropy")  # fmt: skip


def _several(labels: list[str]) -> str:
    return ", ".join(labels) if len(labels) < 4 else f"{labels[0]} to {labels[-1]}"
