"""Whether targets and inputs say anything about each other (4.6.1)."""

import math

import numpy as np

from jaxnet._tables import few
from jaxnet.diagnostics._arrays import is_floating
from jaxnet.diagnostics.facts import Facts
from jaxnet.diagnostics.rules.rule import Place, Verdict, limits, remedies, rule, verdict


@rule(Place.OUTPUT, 0.98)
def one_class(facts: Facts) -> Verdict | None:
    """All targets are the same."""
    target = facts.target
    if not isinstance(target, np.ndarray) or not (target == target[:1]).all():
        return None
    value = np.asarray(target[0], np.float64)
    return verdict(
        "one_class",
        f"all {len(target)} targets are {float(value.flat[0]):g}"
        if value.size == 1
        else f"all {len(target)} targets are the same",
        "Labels that were scaled or cast on the way (labels / 255 as integers are all 0), or one class alone was read: "
        "nothing is to be learned",
        remedies("restore_labels"),
    )


@rule(Place.OUTPUT, 0.97)
def constant_input(facts: Facts) -> Verdict | None:
    """No feature of x differs between samples."""
    x = facts.x
    if not isinstance(x, np.ndarray) or not (x == x[:1]).all() or one_class(facts):
        return None
    return verdict(
        "constant_input",
        f"all {len(x)} inputs are the same",
        "The input was lost on the way to the network: a cast, a scale or a file that is empty",
        remedies("add_features"),
    )


@rule(Place.LABELS, 0.95)
def missing_classes(facts: Facts) -> Verdict | None:
    """Classes of the validation set that the training set does not have."""
    if facts.kind.kind not in ("classes", "one hot", "two values") or not facts.kind.values:
        return None
    if facts.kind.kind == "classes" and facts.free.outputs < 2:  # numbers to be met, not classes
        return None
    held_out = facts.held_out.pair[1]
    labels, held = (one.argmax(-1) if facts.kind.kind == "one hot" else one for one in (facts.target, held_out))
    unseen = ~np.isin(held, np.unique(labels))
    share = float(unseen.mean())
    if share <= limits.UNSEEN:
        return None
    return verdict(
        "missing_classes",
        f"{share:.0%} of the validation samples are of classes that no training sample has: "
        f"{few(np.unique(held[unseen]), 8)} (limit {limits.UNSEEN:.0%})",
        "Data sorted by class were split without being shuffled",
        remedies("split_again"),
    )


@rule(Place.LABELS, 0.8)
def unrelated_targets(facts: Facts) -> Verdict | None:
    """Neither the network nor neighbours nor a straight line tell the targets better than a constant does."""
    if one_class(facts):
        return None
    best = float(np.nanmin(facts.validation)) if np.isfinite(facts.validation).any() else np.inf
    others = [outcome.validation for outcome in facts.outcomes.values() if outcome and outcome.baseline == facts.start]
    best = min([best, *others])
    chance = 1 / math.sqrt(len(facts.held_out.numbers))
    if best < min(limits.NOTHING, 1 - chance) * facts.held_out_baseline or facts.witnesses is None:
        return None
    near, line = facts.witnesses
    if max(near, line) > limits.WITNESS:
        return None
    heart = f", and {facts.final / facts.start:.0%} in training" if facts.final < facts.start else ""
    return verdict(
        "unrelated_targets",
        f"the validation loss never gets below {best / facts.held_out_baseline:.0%} of the best constant "
        f"prediction's{heart}; a sample's nearest others explain {max(near, 0):.0%} of the targets, and a linear fit "
        f"{max(line, 0):.0%} (limit {limits.WITNESS:.0%})",
        "Inputs and targets do not belong together: shuffled apart, read in another order, or shifted by some samples; "
        "or the inputs hold nothing about the targets",
        remedies("pair_again"),
    )


@rule(Place.LEFT_OUT, 0.72)
def duplicates(facts: Facts) -> Verdict | None:
    """Validation samples that are training samples too."""
    x, held = facts.x, facts.held_out.pair[0]
    if not isinstance(x, np.ndarray) or not isinstance(held, np.ndarray) or not is_floating(x) or one_class(facts):
        return None
    seen, looked_at = ({hash(row.tobytes()) for row in np.ascontiguousarray(part)} for part in (x, held))
    many = len(x) > limits.MULTIPLE * len(seen)  # few values are possible at all
    share = np.mean([hash(row.tobytes()) in seen for row in np.ascontiguousarray(held)])
    if many or len(seen) < 10 or len(looked_at) < 2 or share <= limits.DUPLICATES:
        return None
    return verdict(
        "duplicates",
        f"{share:.0%} of the validation samples are in the training set, value for value (limit "
        f"{limits.DUPLICATES:.0%})",
        "Samples were repeated, or augmented, before the data were split: the validation loss says too little about "
        "new samples",
        remedies("drop_duplicates"),
    )
