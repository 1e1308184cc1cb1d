"""What the network is made of, and how it is held back, by runs without that (4.2, 4.6.2)."""

from collections.abc import Callable

from jaxnet.diagnostics.anatomy import is_random, missing_activations
from jaxnet.diagnostics.facts import Facts
from jaxnet.diagnostics.rules.curves import both_losses, evaluation_differs, not_converged, of_evaluation
from jaxnet.diagnostics.rules.rates import another_rate
from jaxnet.diagnostics.rules.rule import Place, Verdict, limits, remedies, rule, verdict
from jaxnet.diagnostics.trial import LOOKS, Outcome
from jaxnet.diagnostics.verdict import remedy


@rule(Place.NETWORK, 0.88)
def no_activations(facts: Facts) -> Verdict | None:
    """Two layers with nothing but straight lines between them, and an activation there gets much further."""
    if facts.left <= limits.LEFT or not (pairs := missing_activations(facts.parts)):
        return None
    between = " and between ".join(f"{one.label} and {other.label}" for one, other in pairs[:3])
    cure = remedy("add_activations", between=f"{between}{' and so on' * (len(pairs) > 3)}")
    outcome = facts.tried(cure, LOOKS)
    if outcome is None or not facts.mends(outcome):
        return None
    return verdict(
        "missing_activations",
        f"nothing but straight lines stands between {between}; with relu there: {facts.against(outcome)}",
        "Linear layers in a row are one linear layer, of whatever width",
        remedies(cure),
    )


@rule(Place.EVALUATION, 0.85)
def averages_behind(facts: Facts) -> Verdict | None:
    """The loss in evaluation is much the larger one, though not by a large part of all, and averages made anew help."""
    seen = both_losses(facts)
    if seen is None or facts.left <= limits.LEFT or evaluation_differs(facts):
        return None
    outcome = facts.tried(remedy("reestimate"), LOOKS)
    if outcome is None or not facts.mends(outcome):
        return None
    return of_evaluation(*seen, f"; with averages made anew: {facts.against(outcome)}")


def regularization(facts: Facts) -> list[str]:
    """What there would be less of: dropout, a penalty, a decay."""
    less = []
    if random := [call.label for call in facts.parts.calls if is_random(call)]:
        less.append(f"a smaller rate in {', '.join(random[:4])}")
    if facts.task.regularizer is not None:
        less.append(f"a smaller penalty, which is {facts.penalty:.3g} at the start where the loss is {facts.start:.3g}")
    if facts.decay * facts.steps > limits.DECAY:
        less.append(f"a smaller decay, which takes {facts.decay:.2g} of the weights each step")
    return less


@rule(Place.NETWORK, 0.88)
def too_much_regularization(facts: Facts) -> Verdict | None:
    """The run has not trained, and without dropout, penalty and decay it gets much further."""
    return _regularized(facts, facts.mends)


@rule(Place.NETWORK, 0.75)
def much_regularization(facts: Facts) -> Verdict | None:
    """... not so in a part of the steps, but in as many it gets clearly further."""
    if too_much_regularization(facts):
        return None
    return _regularized(facts, lambda outcome: facts.gains(outcome, limits.CLEARLY), LOOKS)


def _regularized(facts: Facts, better: Callable[[Outcome], bool], looks: int | None = None) -> Verdict | None:
    if facts.learned or not (less := regularization(facts)):
        return None
    cure = remedy("less_regularization", less="; ".join(less))
    outcome = facts.tried(cure, looks)
    if outcome is None or not better(outcome):
        return None
    return verdict(
        "too_much_regularization",
        f"without any of it: {facts.against(outcome)}",
        "What is to keep the network from learning its samples by heart keeps it from learning: "
        + "; ".join(less).replace("a smaller ", "the "),
        remedies(cure),
    )


@rule(Place.NETWORK, 0.75)
def too_small(facts: Facts) -> Verdict | None:
    """The run has trained, or still falls at the best rate, and a larger network gets much further everywhere."""
    falls = not facts.learned and not_converged(facts) is not None and another_rate(facts) is None
    if not (falls or (facts.learned and facts.left > limits.LEFT)):
        return None
    cure = remedy("widen")
    outcome = facts.tried(cure, LOOKS)
    if outcome is None or not facts.mends(outcome) or not outcome.score > facts.trial.score + limits.SCORE:
        return None
    return verdict(
        "underfitting",
        f"with a larger network: {facts.against(outcome)}",
        "The network is too small to represent the task",
        remedies(cure),
    )
