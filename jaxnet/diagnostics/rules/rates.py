"""What other learning rates would have done (4.6.2)."""

from jaxnet.diagnostics.facts import Facts
from jaxnet.diagnostics.rules.curves import steps_needed
from jaxnet.diagnostics.rules.rule import Place, Verdict, limits, remedies, rule, verdict
from jaxnet.diagnostics.trial import LOOKS
from jaxnet.diagnostics.updates import Updates
from jaxnet.diagnostics.verdict import remedy

OTHERS = (10.0, 0.1)
"""Factors on the rate of a run that trained, with which it is compared."""


@rule(Place.RATE, 0.85)
def another_rate(facts: Facts) -> Verdict | None:
    """Another rate gets much further in a part of the steps than this one in all."""
    if not facts.rates:
        return None
    end = facts.final
    factor = min(facts.rates, key=lambda f: facts.rates[f])
    if not facts.rates[factor] < limits.OTHER_RATE * end:
        return None
    large = factor < 1
    taken = max(facts.steps // LOOKS, 1) * facts.looks
    evidence = (
        f"at {factor:g} times the rate the training loss reaches {facts.rates[factor]:.3g} in {taken} steps, at this "
        f"rate {end:.3g} in {facts.steps} (a rate is wrong if another reaches {limits.OTHER_RATE:.0%} of it)"
    )
    batch, samples = facts.task.batch_size, len(facts.train.numbers)
    if not large and batch > limits.WHOLE * samples:
        return verdict(
            "batch_too_large",
            f"{batch} of {samples} samples a step; {evidence}",
            "With so large a batch an epoch is one step or two, and this rate gets nowhere in so few",
            remedies(("scale_rate", factor), ("smaller_batch", max(min(32, samples // 8), 1)), longer(facts)),
        )
    others = ("clip", "normalize") if large else (longer(facts), "normalize")
    return verdict(
        f"rate_too_{'large' if large else 'small'}",
        evidence,
        "The steps overshoot"
        if large
        else "The steps are too small to get anywhere in so few: a larger rate, or more steps",
        remedies(("scale_rate", factor), *others),
    )


@rule(Place.RATE, 0.75)
def another_rate_in_as_many_steps(facts: Facts) -> Verdict | None:
    """The run has trained, and in as many steps another rate gets much further for validation too."""
    if not facts.learned or facts.left <= limits.LEFT:
        return None
    tried = [(factor, facts.tried(remedy("scale_rate", factor), LOOKS)) for factor in OTHERS]
    better = [
        (outcome.share, factor, outcome)
        for factor, outcome in tried
        if outcome is not None and facts.mends(outcome) and outcome.score > facts.trial.score + limits.SCORE
    ]
    if not better:
        return None
    _, factor, outcome = min(better)
    large = factor < 1
    return verdict(
        f"rate_too_{'large' if large else 'small'}",
        f"with {factor:g} times the rate: {facts.against(outcome)}",
        "The run trains, but its steps are too large to get closer"
        if large
        else "The run trains, but its steps are too small to get further in so few",
        remedies(("scale_rate", factor), "clip" if large else longer(facts)),
    )


@rule(Place.RATE, 0.88)
def updates_too_small(facts: Facts) -> Verdict | None:
    """The updates can have taken off next to nothing, though the gradient is not small, and plain Adam gets further."""
    if facts.trained or not facts.left > limits.TRAINED or (seen := facts.updates) is None:
        return None
    if not (seen.reach < limits.REACH and seen.pull > limits.PULL):
        return None
    larger = another_rate(facts)
    if larger is not None and not (seen.fallen or seen.cut):  # then the rate is all that is wrong
        return None
    why, cause, then = _why_small(seen)
    cure = remedy("plain_optimizer", then=then)
    outcome = facts.tried(cure)
    if outcome is None or not facts.gains(outcome, limits.HELPS):
        return None
    return verdict(
        "updates_too_small",
        f"to first order the updates of the second half can have taken off {seen.reach:.2%} of the best constant "
        f"prediction's loss (limit {limits.REACH:.0%}), of which {facts.left:.0%} are left: in no layer are they more "
        f"than {seen.ratio:.1g} of the weights a step{why}; the gradient is not small: weights that move by their own "
        f"length along it take off {seen.pull:.2g} times that loss (limit {limits.PULL:g})",
        cause,
        remedies(cure),
    )


def _why_small(seen: Updates) -> tuple[str, str, str]:
    """What shows it, what brings it about, and what to do once plain Adam has trained."""
    if seen.fallen:
        of, last, highest = (
            ("the rate", seen.rates[-1], seen.rates.max())
            if seen.rates.size
            else ("an update", seen.norm, seen.highest)
        )
        shown = f", and {of} is {last:.2g} in the end, at its highest {highest:.2g}"
        ends = "A schedule of the rate that ends before the run does, or falls too fast"
        return shown, ends, "; then a schedule as long as the run"
    if seen.rising:
        shown = f", and the rate is {seen.rates[-1]:.2g} in the end, at first {seen.rates[0]:.2g}, and still rising"
        return shown, "A warmup that is longer than this run", "; then a shorter warmup"
    near = f"; then a clip, if any, near the gradient's own norm, {seen.gradient:.2g}"
    if seen.cut:
        shown = f", where the rate is {seen.rates[-1]:.2g}, the gradient's norm {seen.gradient:.2g} and an update's "
        return f"{shown}{seen.norm:.2g}", "A clip to a tiny norm, or a factor on the updates", near
    return "", "A rate that is far too small, a clip to a tiny norm, or a factor on the updates", near


def longer(facts: Facts) -> tuple[str, int | None]:
    """The remedy of more steps."""
    return "train_longer", steps_needed(facts)
