"""Why a network does not learn: a short run, looked at closely, and verdicts with evidence, cause and remedies."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnet import _checks as checks
from jaxnet.diagnostics._arrays import Loss
from jaxnet.diagnostics.baseline import constant_loss, untrained_loss
from jaxnet.diagnostics.dead_units import DeadUnits, dead_units
from jaxnet.diagnostics.facts import Facts, positive
from jaxnet.diagnostics.html_report import html_report
from jaxnet.diagnostics.layer_report import LayerReport
from jaxnet.diagnostics.rules import OF_RUNS, Place
from jaxnet.diagnostics.samples import usable
from jaxnet.diagnostics.trial import EVALUATED, LOOKS, PROBE, Task
from jaxnet.diagnostics.verdict import Verdict
from jaxnet.errors import named
from jaxnet.layers.layer import as_layer
from jaxnet.optimizers import _members
from jaxnet.training.history import History


class Diagnosis(NamedTuple):
    """What `diagnose` returns; prints as a report.

    Attributes:
      verdicts: what is wrong, the most certain first; "healthy" if nothing is, or if the run trained in spite of what
        was found before its first step.
      history: of the run, 20 records.
      reports: a `LayerReport` before the first step and one at every record.
      dead: the dead units at the end, on up to 1,024 samples.
      baseline: the loss of the best constant prediction.
      rates: by factor on the rate, the training loss after a quarter of the steps; empty if the run trained.
      last: params and state at the end of the run.
    """

    verdicts: tuple[Verdict, ...]
    history: History
    reports: tuple[LayerReport, ...]
    dead: DeadUnits
    baseline: float
    rates: dict[float, float]
    last: tuple[Any, Any]

    @property
    def healthy(self) -> bool:
        """Whether nothing was found that kept the run from training."""
        return self.verdicts[0].name == "healthy"

    def __str__(self) -> str:
        last = self.history[-1]
        lines = [
            f"{last['step']:.0f} steps: training loss {last['training_loss']:.4g}, validation loss "
            f"{last['validation_loss']:.4g}; the best constant prediction has {self.baseline:.4g}",
            "",
            *(f"{verdict}\n" for verdict in self.verdicts),
        ]
        if self.rates:
            tried = ", ".join(f"x{factor:g} {loss:.3g}" for factor, loss in sorted(self.rates.items()))
            lines += [f"training loss after a quarter of the steps, by rate: {tried}", ""]
        return "\n".join([*lines, "before the first step:", str(self.reports[0])])

    def html(self, path: Any, title: str = "Diagnosis") -> Any:
        """Writes the report with its pictures as one self-contained HTML page; needs matplotlib. Returns its path."""
        return html_report(self, path, title)


@named("diagnose")
def diagnose(
    net: Any,
    loss: Loss,
    optimizer: Any,
    data: Any,
    *,
    validation: Any = None,
    key: Any = 0,
    steps: int = 600,
    batch_size: int = 32,
    regularizer: Callable[[Any], jax.Array] | None = None,
) -> Diagnosis:
    """Trains a network for a short while and says what is wrong, from what evidence, why, and what to try.

    It looks at the data; at every layer before the first step and 20 times during the run (`layer_report`); at the
    learning curves (`curves_report`). If the run has not trained, it is repeated for a quarter of the steps at rates
    from 1,000 times smaller to 1,000 times larger. Of a classification the labels are looked at. The verdicts are:

    ========================  ======================================================================================
    non_finite_data           NaN or Inf in the data; the rest is diagnosed without these samples
    unnormalized_input        the first layer with a kernel sees numbers far from mean 0 and variance 1
    unnormalized_target       so are the targets of a regression, and the run has not trained
    initialization_too_large  half the layers or more multiply their input's deviation by more than 4
    initialization_too_small  ... by less than 1/4
    dead_units                half the units of a rectifier are 0 on the whole batch, and the run has not trained
    vanishing_gradient        the gradient that reaches the first layer is 1,000 times smaller than at the last
    exploding_gradient        ... 1,000 times larger, or values overflow
    rate_too_large            a smaller rate gets much further
    rate_too_small            a larger one does
    wrong_labels              more than a tenth of the labels are contradicted by the network and by their neighbours
    healthy                   none of these, nor anything that `curves_report` says
    ========================  ======================================================================================

    and divergence, overfitting, noisy_gradient, underfitting and not_converged, as `curves_report` says.

    What may be the consequence of another verdict comes after it, with half the certainty. So does what was found
    before the first step, if the run has trained all the same; it then follows "healthy" unless more was found. A norm
    undoes the scale of the layer before it, whose input and weights are not judged.

    Args:
      net: a `Layer` from x to a prediction.
      loss: ``(prediction, target) -> scalar``, never below 0: the rules are ratios of losses.
      optimizer: an ``(init, update)`` pair, ours or optax's.
      data: arrays ``(x, target)``, unchecked: NaN is a finding. They are gone through in a random order.
      validation: arrays ``(x, target)``; a fifth of the data unless given.
      key: a PRNG key or a seed, of the parameters and of dropout.
      steps: of the run.
      batch_size: samples a step, or all if there are fewer.
      regularizer: ``params -> scalar``, added to the loss that is minimized.

    Returns:
      A `Diagnosis`.

    Raises:
      ConfigError: what is no network, loss or optimizer.
      DataError: fewer than four samples, labels that the loss refuses, or a loss below 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import diagnostics, layers, losses, optimizers
      >>> x = jnp.linspace(-1, 1, 256)[:, None]
      >>> net = layers.chain(layers.dense(16), jnp.tanh, layers.dense(1))
      >>> slow = optimizers.adam(1e-5)
      >>> found = diagnostics.diagnose(net, losses.mse, slow, (x, jnp.sin(3 * x)), steps=400)
      >>> found.verdicts[0].name, found.verdicts[0].remedies[0].action
      ('rate_too_small', 'scale_rate')

    Source: chapter 4.2.1, 4.6.2, 4.6.3.
    """
    net = as_layer(net)
    checks.function("loss", loss)
    optimizer = _members.member(optimizer)
    steps = checks.integer("steps", steps, minimum=3 * LOOKS)
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    if regularizer is not None:
        checks.function("regularizer", regularizer)
    train = given = usable(data)
    if validation is None:
        count = max(len(given.numbers) // 5, 1)
        held_out, train = given.part(slice(count)), given.part(slice(count, None))
    else:
        held_out = usable(validation, " of validation")
    baseline = constant_loss(net, loss, train.pair)  # asks the loss about the labels, outside of any compiled program
    positive(np.array(untrained_loss(net, loss, *train.part(slice(PROBE)).pair)))
    of_a_step = min(batch_size, len(train.numbers))
    task = Task(net, loss, optimizer, regularizer, train.pair, held_out.pair, of_a_step, checks.key(key))
    facts = Facts(task, steps, given, train, held_out, baseline=baseline, batch_size=batch_size)
    trial, verdicts = facts.trial, tuple(_verdicts(facts))
    dead = dead_units(net, *trial.last, [train.part(slice(EVALUATED)).pair[0]])
    return Diagnosis(verdicts, trial.history, tuple(trial.reports), dead, baseline, facts.rates, trial.last)


def _verdicts(facts: Facts) -> list[Verdict]:
    """What the rules find, by certainty; halved where the run has trained all the same."""
    found = [(rule.place, verdict) for rule in OF_RUNS if (verdict := rule(facts))]
    if facts.trained:
        obstacles = (Place.SCALE, Place.GRADIENT)  # as they looked before the first step
        found = [
            (place, verdict._replace(certainty=verdict.certainty / 2) if place in obstacles else verdict)
            for place, verdict in found
        ]
        if all(place in obstacles for place, _ in found):
            found.append((Place.OUTCOME, _healthy(facts)))
    return _ranked(found) or [_healthy(facts)]


def _ranked(found: list[tuple[Place, Verdict]]) -> list[Verdict]:
    """The verdicts by certainty, halved where one that stands earlier in the chain of causes explains it."""
    ranked = []
    for place, verdict in found:
        explained = any(above < place and cause.certainty >= verdict.certainty for above, cause in found)
        ranked.append(verdict._replace(certainty=verdict.certainty / 2) if explained else verdict)
    return sorted(ranked, key=lambda verdict: -verdict.certainty)


def _healthy(facts: Facts) -> Verdict:
    ratio = facts.before.gradient_ratio
    over_depth = "" if math.isnan(ratio) else f"; over depth the gradient changes by a factor of {ratio:.2g}"
    return Verdict(
        "healthy",
        0.7,
        f"the training loss ends at {facts.final / facts.start:.0%} of the best constant prediction's, the "
        f"validation loss at {facts.history[-1]['validation_loss'] / facts.start:.0%}{over_depth}",
        "Nothing is out of order",
    )
