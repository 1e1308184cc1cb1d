"""From the rules to the verdicts: remedies are tried before they are told, and what helps comes first."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxnet.diagnostics import thresholds as limits
from jaxnet.diagnostics.changes import CHANGES, MORE, SMALL
from jaxnet.diagnostics.facts import FACTORS, SMALLEST, Facts
from jaxnet.diagnostics.rules import OF_RUNS, Place
from jaxnet.diagnostics.rules.curves import both_losses
from jaxnet.diagnostics.rules.network import regularization
from jaxnet.diagnostics.rules.outputs import rectified
from jaxnet.diagnostics.rules.rates import OTHERS
from jaxnet.diagnostics.trial import LOOKS, Outcome
from jaxnet.diagnostics.verdict import Remedy, Verdict, remedy

VERDICTS = 4
"""How many verdicts have remedies tried."""

REMEDIES = 2
"""How many remedies of each are, where the library can carry them out."""

FURTHER = round(math.log10(min(FACTORS) / SMALLEST))
"""How many smaller rates are tried besides, at most."""

OF_RULES = 4
"""How many tries rules make of themselves: without regularization, with another loss or optimizer, without an output
function."""

COMPARED = (*(remedy("scale_rate", factor) for factor in OTHERS), remedy("initialize"))
"""What a run that trained is compared with; a larger network besides, no regularization where there is any, no
rectifier behind the last layer, and averages made anew where evaluation has much the larger loss."""

LARGER = ("widen", "deepen")
"""Remedies after which it is not this network any more that trains."""

CONSEQUENCES = (Place.RATE, Place.NETWORK, Place.UNITS, Place.OUTCOME)
"""What is not looked for where something is wrong without any doubt: it would cost runs, and mean little."""

OBSTACLES = (Place.SCALE, Place.GRADIENT)
"""What is found before the first step; a run may train in spite of it."""

Found = list[tuple[Place, Verdict]]


def judged(facts: Facts, say: Callable[[str], Any]) -> list[Verdict]:
    """What the rules find, the most certain first, with what each remedy was seen to do."""
    _announce(facts, say)
    found: Found = []
    for rule in OF_RUNS:
        if rule.place in CONSEQUENCES and (_exact(found) or _elsewhere(facts, found)):
            continue
        if verdict := rule(facts):
            found.append((rule.place, verdict))
    found = [one for one in found if one[0] is not Place.OUTCOME or not _told_before(one[1], found)]
    if facts.trained:
        found = [(place, _overcome(facts, place, verdict)) for place, verdict in found]
        if all(place in OBSTACLES and verdict.certainty <= 0.5 for place, verdict in found):
            found.append((Place.OUTCOME, healthy(facts)))
    else:
        found = [
            (place, _refuted(facts, verdict)) for place, verdict in _tried(facts, found) if _stands(facts, verdict)
        ]
    first, *rest = ranked(found) or [healthy(facts)]
    if facts.lowest:
        off = f"losses are less {facts.lowest:.3g}, the lowest value that predictions free to choose were seen to reach"
        first = first._replace(evidence=f"{first.evidence}; {off}")
    told = (first, *(agreeing(facts, first, verdict) for verdict in rest))
    return [
        verdict._replace(remedies=tuple(_told(facts, cure) for cure in verdict.remedies if not _there(facts, cure)))
        for verdict in told
    ]


def _told_before(verdict: Verdict, found: Found) -> bool:
    """Whether an earlier place of the chain of causes has the same verdict, by better evidence than the curves'."""
    return any(one.name == verdict.name and place is not Place.OUTCOME for place, one in found)


def _overcome(facts: Facts, place: Place, verdict: Verdict) -> Verdict:
    """What was found before the first step counts half if the run has trained all the same, unless it cost much."""
    if place not in OBSTACLES:
        return verdict
    outcome = facts.tried(verdict.remedies[0]) if facts.left > limits.LEFT else None
    if outcome is not None and (facts.mends(outcome) or facts.generalizes(outcome)):
        return verdict
    return verdict._replace(certainty=verdict.certainty / 2)


def _exact(found: Found) -> bool:
    """Whether something is wrong without any doubt, of which all else may be the consequence."""
    return any(place is Place.OUTPUT and verdict.certainty >= limits.EXACT for place, verdict in found)


def _elsewhere(facts: Facts, found: Found) -> bool:
    """Whether the network has trained as it runs in training: then what it does in evaluation says nothing of steps."""
    differs = any(place is Place.EVALUATION for place, _ in found)
    return differs and float(np.median(facts.history["loss"][-3:])) <= limits.TRAINED * facts.start


def _there(facts: Facts, cure: Remedy) -> bool:
    """Whether a remedy advises a layer that the network has."""
    return cure.action == "normalize" and any(facts.before.norms)


def _stands(facts: Facts, verdict: Verdict) -> bool:
    """Not where a network is called too small that was seen to train."""
    of_this_size = [one for (action, *_), one in facts.outcomes.items() if one and action not in LARGER]
    return verdict.name != "underfitting" or not any(map(facts.mends, of_this_size))


def _refuted(facts: Facts, verdict: Verdict) -> Verdict:
    """A network is hardly too small where a larger one was seen to get no further."""
    outcome = _seen(facts, remedy("widen"))
    if verdict.name != "underfitting" or outcome is None or not facts.further(outcome, limits.HELPS)[0]:
        return verdict
    return verdict._replace(
        certainty=verdict.certainty / 2,
        cause="Not the network's size, since a larger one gets no further: the data do not determine the target, or "
        "something that was not found holds the training back",
    )


def _announce(facts: Facts, say: Callable[[str], Any]) -> None:
    """Says what the tries will cost at most, before they begin."""
    if not facts.learned:
        whole = 2 + bool(regularization(facts)) + (both_losses(facts) is not None)
        times = ("twice", "three times", "four times")[whole - 2]
        most = len(FACTORS) + FURTHER + VERDICTS * REMEDIES + OF_RULES
        say(
            f"the run has not trained: other rates and remedies are tried, at most {most} times for "
            f"{facts.looks * max(facts.steps // LOOKS, 1)} steps and {times} for as many as the run took, "
            f"{most * facts.looks / LOOKS + whole:.2g} times the run; steps of a larger network are up to {MORE} times "
            f"the work, or those of one of {SMALL:,d} parameters"
        )
    elif facts.wanting:
        others = len(COMPARED) + 2 + bool(regularization(facts)) if facts.left > limits.LEFT else 0
        if others := others + rectified(facts) + (both_losses(facts) is not None):
            say(
                f"the run has trained, and {facts.left:.0%} of the loss are left: it is compared with at most {others} "
                f"other{'s' * (others > 1)} of as many steps"
            )


def _tried(facts: Facts, found: Found) -> Found:
    """The verdicts with their remedies tried: the more certain if one helps, the less if none does."""
    causes = [one for one in found if one[0] is not Place.OUTCOME] or found  # what the curves show is an outcome
    leading = sorted(causes, key=lambda one: -one[1].certainty)[: 1 if _exact(found) else VERDICTS]
    best: dict[int, Outcome] = {}
    for number, one in enumerate(found):
        cures = [cure for cure in one[1].remedies[:REMEDIES] if cure.action in CHANGES] if one in leading else []
        if outcomes := [outcome for cure in cures if (outcome := facts.tried(cure))]:
            best[number] = min(outcomes, key=lambda outcome: outcome.share)
    lowest = min((outcome.share for outcome in best.values()), default=math.inf)
    highest = max((outcome.score for outcome in best.values() if math.isfinite(outcome.score)), default=math.inf)

    def mends(outcome: Outcome) -> bool:
        """Whether it gets much further; losses of other units do not compare, accuracies and R2 do."""
        scored = outcome.score > facts.trial.score + limits.SCORE and outcome.score >= highest - limits.SCORE
        return facts.mends(outcome) or (not outcome.same and scored)

    helped = any(map(mends, best.values()))  # what is too short for one is so for all

    def near(outcome: Outcome) -> bool:
        """Whether it mends about as much as the best of them."""
        close = outcome.share <= max(limits.NEAR * lowest, limits.LEFT)
        close |= not outcome.same and outcome.score >= highest - limits.SCORE
        return mends(outcome) and close

    first = min((found[number][0] for number, outcome in best.items() if near(outcome)), default=Place.LEFT_OUT)
    judged = []
    for number, (place, verdict) in enumerate(found):
        certainty, outcome = verdict.certainty, best.get(number)
        if outcome is not None and mends(outcome):
            if not near(outcome):
                certainty = 0.8 * certainty
            elif place <= first:  # where several help alike, the earliest is the cause of the others
                certainty = 1 - (1 - certainty) / 2
        elif outcome is not None and helped and place is not Place.LEFT_OUT:
            certainty = certainty / 2 if outcome.share > limits.HELPS * facts.left else certainty
        judged.append((place, verdict._replace(certainty=certainty, remedies=ordered(facts, verdict.remedies))))
    return judged


def ordered(facts: Facts, cures: tuple[Remedy, ...]) -> tuple[Remedy, ...]:
    """Those that were seen to help first, the best of them before the others; last what was seen to hurt."""

    def place(cure):
        outcome = facts.outcomes.get((cure.action, cure.value, facts.looks))
        if outcome is None:
            return 1.0, 0.0
        if facts.mends(outcome):
            return 0.0, max(outcome.share, limits.LEFT)
        if not math.isfinite(outcome.share):
            return 3.0, 0.0
        return (2.0, 0.0) if facts.hurts(outcome) else (1.0, 0.0)

    return tuple(sorted(cures, key=place))


def agreeing(facts: Facts, first: Verdict, verdict: Verdict) -> Verdict:
    """A later verdict without rates that are the opposite of what the first one advises, but for those seen to help."""
    advised = next((cure.value for cure in first.remedies if cure.action == "scale_rate"), 1.0)

    def agrees(cure: Remedy) -> bool:
        outcome = _seen(facts, cure)
        opposite = cure.action == "scale_rate" and (cure.value - 1) * (advised - 1) < 0
        return not opposite or (outcome is not None and facts.mends(outcome))

    return verdict._replace(remedies=tuple(filter(agrees, verdict.remedies)))


def _seen(facts: Facts, cure: Remedy) -> Outcome | None:
    """How a run with a remedy ended, the longer if there are two."""
    of_any = (facts.outcomes.get((cure.action, cure.value, looks)) for looks in (LOOKS, facts.looks))
    return next(filter(None, of_any), None)


def _told(facts: Facts, cure: Remedy) -> Remedy:
    """A remedy with what it was seen to do."""
    outcome = _seen(facts, cure)
    if outcome is None:
        return cure._replace(seen="not tried")
    return cure._replace(seen=f"tried{', and it hurt' * facts.hurts(outcome)}: {facts.against(outcome)}")


def ranked(found: Found) -> list[Verdict]:
    """The verdicts by certainty, halved where one that stands earlier in the chain of causes explains it."""
    told = []
    for place, verdict in found:
        explained = any(above < place and cause.certainty >= verdict.certainty for above, cause in found)
        told.append(verdict._replace(certainty=verdict.certainty / 2) if explained else verdict)
    return sorted(told, key=lambda verdict: -verdict.certainty)


def healthy(facts: Facts) -> Verdict:
    """Nothing is wrong, and what a comparison found to be had."""
    ratio = facts.before.gradient_ratio
    over_depth = "" if math.isnan(ratio) else f"; over depth the gradient changes by a factor of {ratio:.2g}"
    score = f", {facts.kind.name} {facts.trial.score:.2f}" if math.isfinite(facts.trial.score) else ""
    compared, better = _compared(facts) if facts.left > limits.LEFT else ("", False)
    return Verdict(
        "healthy",
        0.7,
        f"the training loss ends at {facts.final / facts.start:.0%} of the best constant prediction's, the "
        f"validation loss at {facts.history[-1]['validation_loss'] / facts.start:.0%}{score}{over_depth}{compared}",
        "Nothing is out of order, but something else gets further" if better else "Nothing is out of order",
    )


def _compared(facts: Facts) -> tuple[str, bool]:
    """What other rates, another initialization, a larger network and no regularization reach in as many steps."""
    words = {"scale_rate": "{:g} times the rate", "initialize": "another initialization", "widen": "a larger network",
             "less_regularization": "no regularization"}  # fmt: skip
    less = regularization(facts)
    told = []
    for cure in (*COMPARED, remedy("widen"), *([remedy("less_regularization", less="; ".join(less))] if less else [])):
        outcome = facts.tried(cure, LOOKS)
        if outcome is not None:
            score = f" ({facts.kind.name} {outcome.score:.2f})" if math.isfinite(outcome.score) else ""
            lowest = min(outcome.validation, 1e9) / outcome.baseline
            told.append((lowest, f"{words[cure.action].format(cure.value)} {lowest:.0%}{score}"))
    if not told:
        return "; nothing could be compared with it", False
    own = float(min(facts.validation[facts.validation == facts.validation])) / facts.start
    better = [text for lowest, text in sorted(told) if lowest < 0.9 * own]
    lead = f"; compared, the validation loss at its lowest is {own:.0%}"
    if not better:
        tried = ", ".join(text.rpartition(" (")[0] or text for _, text in told)
        return f"{lead}, and no lower by a tenth with {tried}", False
    return f"{lead}, and in as many steps with {', with '.join(better)}", True
