"""Why a network does not learn: a short run, looked at closely, and verdicts with evidence, cause and remedies."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxnet import _checks as checks
from jaxnet.diagnostics import refusals
from jaxnet.diagnostics._arrays import Loss
from jaxnet.diagnostics.baseline import constant_loss, untrained_loss
from jaxnet.diagnostics.dead_units import DeadUnits, dead_units
from jaxnet.diagnostics.facts import BelowZero, Facts
from jaxnet.diagnostics.free_output import FreeOutput
from jaxnet.diagnostics.html_report import html_report
from jaxnet.diagnostics.irreducible import less, without_floor
from jaxnet.diagnostics.layer_report import LayerReport
from jaxnet.diagnostics.ranking import judged
from jaxnet.diagnostics.samples import Samples, usable
from jaxnet.diagnostics.score import score_of, targets
from jaxnet.diagnostics.trial import EVALUATED, LOOKS, PROBE, Task
from jaxnet.diagnostics.verdict import Verdict
from jaxnet.errors import named
from jaxnet.layers.layer import Layer, as_layer
from jaxnet.optimizers import _members
from jaxnet.training.history import History
from jaxnet.training.weighted import of_pair


class Diagnosis(NamedTuple):
    """What `diagnose` returns; prints as a report.

    Where no step could be made, of data that the network or the loss refuses, there are verdicts alone: no history and
    no reports, and ``dead`` and ``last`` are None.

    Attributes:
      verdicts: what is wrong, the most certain first; "healthy" if nothing is, or if the run trained in spite of what
        was found before its first step.
      history: of the run, 20 records.
      reports: a `LayerReport` before the first step and one at every record.
      dead: the dead units at the end, on up to 1,024 samples.
      baseline: the loss of the best constant prediction.
      rates: by factor on the rate, the training loss after a part of the steps; empty if the run trained.
      last: params and state at the end of the run.
      cost: all steps that were taken, those of the tries too, over those of the run. A step of a try costs what one of
        the run does, but with a larger network, at most 16 times that, or another batch; not counted is what a table in
        the place of the network was trained for, 1,200 steps on 64 samples.
    """

    verdicts: tuple[Verdict, ...]
    history: History
    reports: tuple[LayerReport, ...]
    dead: DeadUnits | None
    baseline: float
    rates: dict[float, float]
    last: tuple[Any, Any] | None
    cost: float

    @property
    def healthy(self) -> bool:
        """Whether nothing was found that kept the run from training."""
        return self.verdicts[0].name == "healthy"

    def __str__(self) -> str:
        told = [f"{verdict}\n" for verdict in self.verdicts]
        if not self.reports:
            return "\n".join(["no step was made", "", *told])
        last = self.history[-1]
        lines = [
            f"{last['step']:.0f} steps: training loss {last['training_loss']:.4g}, validation loss "
            f"{last['validation_loss']:.4g}; the best constant prediction has {self.baseline:.4g}",
            "",
            *told,
        ]
        if self.rates:
            tried = ", ".join(f"x{factor:g} {loss:.3g}" for factor, loss in sorted(self.rates.items()))
            lines += [f"training loss of shorter runs, by rate: {tried}", ""]
        return "\n".join([*lines, "before the first step:", str(self.reports[0])])

    def html(self, path: Any, title: str = "Diagnosis") -> Any:
        """Writes the report with its pictures as one self-contained HTML page; needs matplotlib. Returns its path.

        Raises:
          DependencyError: matplotlib is not installed.
          ConfigError: ``path`` is none.
        """
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
    progress: bool | Callable[[str], Any] = True,
) -> Diagnosis:
    """Trains a network for a short while and says what is wrong, from what evidence, why, and what to try.

    It looks at the data; at what output and loss can represent; at every layer before the first step and 20 times
    during the run (`layer_report`); at the learning curves (`curves_report`). If the run has not trained, it is
    repeated for a quarter of the steps, or 60, at rates from 1,000 times smaller to 1,000 times larger, and with the
    first remedies of the leading verdicts, where the library can carry them out: what helps comes first, and every
    remedy says what it was seen to do. A run that trained and left more than a tenth of the loss is compared with
    others. Before it tries anything it says what that costs. The verdicts are:

    ========================  ======================================================================================
    non_finite_data           NaN or Inf in the data; the rest is diagnosed without these samples
    wrong_input, _target      the network refuses the input, or the loss the target: no step is made
    not_traceable             the network or the loss asks for values, as NumPy does: no step is made
    too_few_samples           fewer than 4: no step is made
    negative_loss             the loss falls below 0 without end: no step is made
    wrong_output              no network in front of this output and this loss can represent these targets
    no_gradient               argmax, rounding, stop_gradient or a loss that counts lets no gradient through
    nothing_moves             every update is 0
    one_class                 all targets are the same
    constant_input            all inputs are
    missing_classes           of the validation set, which no training sample has
    duplicates                validation samples are training samples
    unrelated_targets         neither the network nor neighbours nor a line tell targets from inputs
    unnormalized_input        the first layer with a kernel sees numbers far from mean 0 and variance 1
    unnormalized_target       so are the targets of a regression, and the run has not trained
    initialization_too_large  half the layers or more multiply their input's deviation by more than 4
    initialization_too_small  ... by less than 1/4
    dead_units                half the units of a rectifier are 0 on the whole batch, and the run has not trained
    vanishing_gradient        the gradient that reaches the first layer is 1,000 times smaller than at the last
    exploding_gradient        ... 1,000 times larger, or values overflow
    rate_too_large            a smaller rate gets much further
    rate_too_small            a larger one does
    batch_too_large           so it does, and a step takes nearly all samples
    updates_too_small         they can have taken off next to nothing, the gradient is not small, and Adam alone gets
                              further: a schedule that has ended, a warmup, a clip to a tiny norm, a factor
    missing_activations       layers in a row with nothing nonlinear between them; with relu there it gets much further
    too_much_regularization   without dropout, penalty and decay it gets much further, or, less surely, by a fifth
    evaluation_differs        the training set has a far larger loss in evaluation than in training
    wrong_labels              more than a tenth of the labels are contradicted by the network and by their neighbours
    healthy                   none of these, nor anything that `curves_report` says
    ========================  ======================================================================================

    and divergence, overfitting, noisy_gradient, no_progress, underfitting and not_converged, as `curves_report` says.

    What may be the consequence of another verdict comes after it, with half the certainty. So does what was found
    before the first step, if the run has trained all the same; it then follows "healthy" unless more was found. A norm
    undoes the scale of the layer before it, whose input and weights are not judged.

    Args:
      net: a `Layer` from x to a prediction.
      loss: ``(prediction, target) -> scalar``. The rules are ratios of losses: of one that falls below 0 the lowest
        value is found first, and taken off.
      optimizer: an ``(init, update)`` pair, ours or optax's.
      data: arrays ``(x, target)``, each (samples, ...), unchecked: what is wrong with them is a finding. They are gone
        through in a random order. Of an iterable of batches ``(x, target)`` the first 8,192 samples are taken.
      validation: arrays ``(x, target)``; a fifth of the data unless given.
      key: a PRNG key or a seed, of the parameters and of dropout.
      steps: of the run, at least 60.
      batch_size: samples a step, or all if there are fewer.
      regularizer: ``params -> scalar``, added to the loss that is minimized.
      progress: whether to print what the tries will cost, or a function that takes the line.

    Returns:
      A `Diagnosis`.

    Raises:
      ConfigError: what is no network, loss, optimizer, regularizer or key, or a number that makes no sense.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import diagnostics, layers, losses, optimizers
      >>> x = jnp.linspace(-1, 1, 256)[:, None]
      >>> net = layers.chain(layers.dense(16), jnp.tanh, layers.dense(1))
      >>> slow = optimizers.adam(1e-5)
      >>> found = diagnostics.diagnose(net, losses.mse, slow, (x, jnp.sin(3 * x)), steps=400, progress=False)
      >>> found.verdicts[0].name, found.verdicts[0].remedies[0].action
      ('rate_too_small', 'scale_rate')

    Source: chapter 4.2.1, 4.6.2, 4.6.3.
    """
    net = as_layer(net, "net")
    of_pair("loss", loss)
    optimizer = _members.member(optimizer)
    steps = checks.integer("steps", steps, minimum=3 * LOOKS)
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    if regularizer is not None:
        checks.function("regularizer", regularizer)
    say = progress if callable(progress) else (print if checks.flag("progress", progress) else _silent)
    try:
        train, held_out, given = _samples(data, validation)
        refusals.check(net, loss, train.pair)
        refusals.check(net, loss, held_out.pair, " of validation")
        free = FreeOutput.of(net, loss, *train.pair)
        baseline = _asked(net, loss, train)
        of_a_step = min(batch_size, len(train.numbers))
        kind = targets(train.pair[1])
        threshold = free.threshold(*kind.values) if len(kind.values) == 2 else None
        task = Task(
            net, loss, optimizer, regularizer, train.pair, held_out.pair, of_a_step, checks.key(key),
            score_of(kind, threshold), threshold,
        )  # fmt: skip
        sets = (given, train, held_out)
        if baseline < 0 or free.dips:
            facts = _above_zero(task, steps, sets, free, batch_size)
        else:
            try:
                facts = Facts(task, steps, *sets, free=free, baseline=baseline, batch_size=batch_size)
            except BelowZero:  # it fell below 0 on the way
                facts = _above_zero(task, steps, sets, free, batch_size)
    except refusals.Refusal as refusal:
        return Diagnosis((refusal.verdict,), History(), (), None, math.nan, {}, None, 0.0)
    trial, baseline = facts.trial, facts.start
    facts = without_floor(facts)
    verdicts = tuple(judged(facts, say))
    dead = dead_units(net, *trial.last, [train.part(slice(EVALUATED)).pair[0]])
    taken = steps + sum(outcome.steps for outcome in facts.outcomes.values() if outcome)
    return Diagnosis(
        verdicts,
        trial.history,
        tuple(trial.reports),
        dead,
        baseline,
        vars(facts).get("rates", {}),
        trial.last,
        taken / steps,
    )


def _silent(line: str) -> None:
    del line


def _samples(data: Any, validation: Any) -> tuple[Samples, Samples, Samples]:
    """Those to train on, those of validation, and all that were given."""
    train = given = usable(data)
    if validation is not None:
        return train, usable(validation, " of validation"), given
    count = max(len(given.numbers) // 5, 1)
    return given.part(slice(count, None)), given.part(slice(count)), given


def _asked(net: Layer, loss: Loss, train: Samples) -> float:
    """The baseline, or what a fresh network has if that is below 0; asks about all labels, outside of any program."""
    try:
        start = untrained_loss(net, loss, *train.part(slice(PROBE)).pair)
        baseline = constant_loss(net, loss, train.pair)
        return start if start < 0 else baseline
    except Exception as error:  # it took the first samples
        raise refusals.of_target(net, train.pair, error) from error


def _above_zero(task: Task, steps: int, sets: Any, free: FreeOutput, batch_size: int) -> Facts:
    """The facts of the loss less its lowest value, since the rules are ratios of losses.

    Raises:
      Refusal: it has none.
    """
    lowest, loss = free.floor(), task.loss
    if not (math.isfinite(lowest) and free.settled):
        raise refusals.unbounded(lowest)
    shift = min(lowest, 0.0)
    shifted = less(loss, shift)
    free.loss, free.shift = shifted, shift
    task = dataclasses.replace(task, loss=shifted)
    baseline = constant_loss(task.net, shifted, sets[1].pair)
    facts = Facts(task, steps, *sets, free=free, baseline=baseline, batch_size=batch_size)
    facts.shifted, facts.lowest = True, shift
    return facts
