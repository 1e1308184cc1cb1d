"""Why a network does not learn: a short run, looked at closely, and verdicts with evidence, cause and remedies."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks_named as checks
from jaxnet import _incoming as incoming
from jaxnet import data as data_module
from jaxnet.diagnostics import thresholds as limits
from jaxnet.diagnostics.curves_report import curves_report, positive
from jaxnet.diagnostics.dead_units import DeadUnits, dead_units
from jaxnet.diagnostics.layer_report import LayerReport
from jaxnet.diagnostics.suspect_labels import NEIGHBOURS, suspect_labels
from jaxnet.diagnostics.trial import EVALUATED, LOOKS, PROBE, Task, Trial
from jaxnet.diagnostics.verdict import Verdict, remedies, remedy
from jaxnet.errors import DataError
from jaxnet.layers.layer import Layer, as_layer
from jaxnet.optimizers import _checks as optimizer_checks
from jaxnet.training.history import History
from jaxnet.training.step import pair

FACTORS = (0.001, 0.01, 0.1, 10.0, 100.0, 1000.0)
"""Other rates that a run which did not train is tried with, as factors on its own."""

TRIED = 0.25
"""The share of the steps for which each other rate is tried."""

AUDITED = 4096
"""The most samples whose labels are looked at."""


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
        from jaxnet.diagnostics.html_report import html_report

        return html_report(self, path, title)


def diagnose(
    net: Any,
    loss: Callable[[Any, Any], jax.Array],
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
    who = "diagnose"
    net = as_layer(net, who)
    checks.function(who, "loss", loss)
    optimizer = optimizer_checks.optimizer(who, optimizer)
    steps = checks.integer(who, "steps", steps, minimum=3 * LOOKS)
    batch_size = checks.integer(who, "batch_size", batch_size, minimum=1)
    if regularizer is not None:
        checks.function(who, "regularizer", regularizer)
    found: list[Verdict] = []
    data, numbers, bad = _usable(who, data)
    if bad.size:
        found.append(_non_finite(data, bad))
    if validation is not None:
        validation, _, bad = _usable(who, validation, " of validation")
        if bad.size:
            found.append(_non_finite(validation, bad, "validation "))
    else:
        count = max(len(numbers) // 5, 1)
        validation = jax.tree.map(lambda leaf: leaf[:count], data)
        data, numbers = jax.tree.map(lambda leaf: leaf[count:], data), numbers[count:]
    baseline = _constant_loss(net, loss, data)  # asks the loss about the labels, outside of any compiled program
    positive(who, np.array(_untrained_loss(net, loss, *jax.tree.map(lambda leaf: leaf[:PROBE], data))))
    task = Task(
        net, loss, optimizer, regularizer, data, validation, min(batch_size, len(numbers)), checks.key(who, key)
    )
    trial = task.run(steps)
    positive(who, trial.history["training_loss"], trial.history["validation_loss"])
    end = trial.history[-1]["training_loss"]
    trained = math.isfinite(end) and end <= limits.TRAINED * baseline

    at_the_start = _at_the_start(data, trial.reports[0], trained)
    if trained:  # then it was no obstacle
        at_the_start = [verdict._replace(certainty=verdict.certainty / 2) for verdict in at_the_start]
    else:
        at_the_start += _target(data[1])
    found += at_the_start
    rates: dict[float, float] = {}
    start = float(trial.reports[0].loss)  # a lucky draw may begin well below the baseline
    if not trained or not end <= limits.TRAINED * start:
        rates = {f: _loss_at(task, steps, f) for f in FACTORS}
        found += _rates(trial, rates)
    found += _labels(task, trial, numbers)
    found += _dead_at_the_end(trial, found, trained)
    curves = curves_report(trial.history, baseline=baseline, batch_size=batch_size)
    found += [verdict for verdict in curves if verdict.name not in ("healthy", "rate_too_large", "rate_too_small")]
    if trained and len(found) == len(at_the_start):
        found.append(_healthy(trial, baseline))
    verdicts = _ranked(found) or [_healthy(trial, baseline)]
    watched = jax.tree.map(lambda leaf: leaf[:EVALUATED], data[0])
    return Diagnosis(
        tuple(verdicts),
        trial.history,
        tuple(trial.reports),
        dead_units(net, *trial.last, [watched]),
        baseline,
        rates,
        trial.last,
    )


def _usable(who: str, data: Any, which: str = "") -> tuple[Any, np.ndarray, np.ndarray]:
    """The finite samples in a random order, their numbers, and the numbers of the others."""
    pairs = pair(who, data)
    leaves, treedef = jax.tree.flatten(pairs)
    leaves = [checks.host_array(who, "data", np.asarray(incoming.host(who, "data", leaf))) for leaf in leaves]
    lengths = {len(leaf) if leaf.ndim else 0 for leaf in leaves}
    if len(lengths) != 1:
        raise DataError(f"{who}: x and target must hold one entry a sample, got lengths {sorted(lengths)}")
    finite = np.ones(lengths.pop(), bool)
    for leaf in leaves:
        if _is_floating(leaf):
            finite &= np.isfinite(leaf.astype(np.float32)).reshape(len(leaf), -1).all(1)
    numbers = data_module.epoch_order(len(finite))
    numbers = numbers[finite[numbers]]
    if len(numbers) < 4:
        raise DataError(f"{who}: at least four samples{which} without NaN or Inf are needed, got {len(numbers)}")
    return jax.tree.unflatten(treedef, [leaf[numbers] for leaf in leaves]), numbers, np.flatnonzero(~finite)


def _is_floating(array: Any) -> bool:
    return isinstance(array, np.ndarray) and bool(jnp.issubdtype(array.dtype, jnp.floating))  # bfloat16 too


def _non_finite(data: Any, bad: np.ndarray, which: str = "") -> Verdict:
    several = len(bad) > 1
    return Verdict(
        "non_finite_data",
        1.0,
        f"{which}sample{'s' if several else ''} {', '.join(map(str, bad[:8]))}{', ...' if len(bad) > 8 else ''} "
        f"hold{'' if several else 's'} NaN or Inf, {len(bad)} of {len(bad) + len(jax.tree.leaves(data)[0])}",
        "Missing values, a division by zero or an overflow where the data were made; one such value makes the gradient "
        "of its whole batch NaN",
        remedies(("drop_validation_samples" if which else "drop_samples", bad.tolist())),
    )


def _at_the_start(data: Any, report: LayerReport, trained: bool) -> list[Verdict]:
    """What is wrong before the first step: the input's scale, the weights', dead units, the gradient's path."""
    found: list[Verdict] = []
    kernels = report.kernels
    normed = [i + 1 < len(report.labels) and report.norms[i + 1] for i in kernels]
    saturated = report.saturated[~np.isnan(report.saturated)]
    rms, mean, small = _input(data[0], report)
    if (rms > limits.INPUT_RMS or small) and not (normed and normed[0]):
        tail = (
            f"; {saturated[0]:.0%} of the first bounded activation's outputs are at its bounds"
            if saturated.size
            else ""
        )
        found.append(
            Verdict(
                "unnormalized_input",
                0.95,
                f"root mean square {rms:.3g} ({'below' if small else 'above'} "
                f"{1 / limits.INPUT_RMS if small else limits.INPUT_RMS:g}), mean {mean:.3g}{tail}",
                "Units of measurement that the initialization does not know",
                remedies("standardize_input", "normalize", "use_rectifiers"),
            )
        )
    gains = report.gain[kernels][~np.array(normed, bool)]
    if gains.size and not limits.GAIN >= np.median(gains) >= 1 / limits.GAIN:
        large = np.median(gains) > 1
        found.append(
            Verdict(
                f"initialization_too_{'large' if large else 'small'}",
                0.95,
                f"the median layer multiplies its input's deviation by {np.median(gains):.3g} "
                f"({'above' if large else 'below'} {limits.GAIN if large else 1 / limits.GAIN:g}; 1 to 1.41 keeps it)",
                "Weights drawn too large: signals grow from layer to layer, and activations saturate or die"
                if large
                else "Weights drawn too small: signals and gradients fade from layer to layer",
                remedies("initialize", "normalize"),
            )
        )
    worst = _worst(report.dead)
    # In deep narrow networks a layer may have half its units dead and enough alive: then the run trains.
    if not trained and worst is not None and report.dead[worst] >= limits.DEAD:
        found.append(
            Verdict(
                "dead_units",
                0.9,
                f"{report.dead[worst]:.0%} of the units of {report.labels[worst]} are 0 on the whole batch before the "
                f"first step (limit {limits.DEAD:.0%})",
                "They were born dead: large negative biases, or layers so narrow that all units are off at once",
                remedies("initialize", "use_leaky_rectifiers", "normalize", "widen"),
            )
        )
    ratio = report.gradient_ratio
    overflow = int(report.first_nonfinite) >= 0 or not np.isfinite(report.loss)
    gradients = report.activation_gradient[kernels]
    text = (
        f"the gradient's norm is {gradients[0]:.2g} at {report.labels[kernels[0]]} and {gradients[-1]:.2g} at "
        f"{report.labels[kernels[-1]]}: a factor of e^{-float(report.slope):.2g} a layer, {ratio:.2g} in all"
        if ratio > 0
        else f"the gradient's norm is 0 at {report.labels[kernels[0]]} and {gradients[-1]:.2g} at "
        f"{report.labels[kernels[-1]]}"
        if ratio == 0
        else ""
    )
    if len(kernels) > 1 and ratio < limits.GRADIENT_RATIO:
        saturating = saturated.size > 0
        found.append(
            Verdict(
                "vanishing_gradient",
                0.9,
                f"{text} (limit {limits.GRADIENT_RATIO:g})",
                "Backpropagation multiplies by one derivative a layer"
                + (", and those of sigmoid and tanh are small: at most 1/4 for sigmoid" if saturating else ""),
                remedies(*(["use_rectifiers"] if saturating else ["initialize"]), "normalize", "residual"),
            )
        )
    elif overflow or (len(kernels) > 1 and ratio > 1 / limits.GRADIENT_RATIO):
        first = int(report.first_nonfinite)
        place = f"values overflow from {report.labels[first]} on" if first >= 0 else ""
        far = f"{text} (limit {1 / limits.GRADIENT_RATIO:g})" if text else ""
        found.append(
            Verdict(
                "exploding_gradient",
                0.9,
                "; ".join(filter(None, (place, far))) or f"the loss is {float(report.loss):g} before the first step",
                "Backpropagation multiplies by one matrix a layer, and these enlarge: harmless once, not many times",
                remedies("initialize", "normalize", "residual", "clip"),
            )
        )
    return found


def _input(data: Any, report: LayerReport) -> tuple[float, float, bool]:
    """Root mean square and mean of what the first kernel sees, and whether it is far too small."""
    floating = [leaf.astype(np.float64) for leaf in jax.tree.leaves(data) if _is_floating(leaf)]
    if not floating:
        return 1.0, 0.0, False

    def scale(x):
        return float(np.sqrt(np.mean(np.square(x))))

    x = max(floating, key=lambda x: abs(math.log(max(scale(x), 1e-30))))  # of several, the one that is furthest off
    rms, mean = scale(x), float(x.mean())
    filled = rms / math.sqrt(max(float(np.mean(x != 0)), 1e-12))  # of what is not 0: one-hot inputs are not small
    row = int(report.kernels[0]) - 1 if len(report.kernels) else -1
    if row >= 0 and np.isfinite(report.deviation[row]):
        mean = float(report.mean[row])
        rms = math.hypot(mean, float(report.deviation[row]))
    return rms, mean, max(rms, filled) < 1 / limits.INPUT_RMS


def _target(target: Any) -> list[Verdict]:
    """Whether a regression's targets are far from mean 0 and variance 1."""
    if not _is_floating(target) or (target.min() >= 0 and target.max() <= 1):  # shares, or classes
        return []
    target = target.astype(np.float64)
    mean, deviation = float(target.mean()), float(np.sqrt(np.mean(np.square(target - target.mean(0)))))
    if abs(mean) <= limits.INPUT_RMS and limits.INPUT_RMS >= deviation >= 1 / limits.INPUT_RMS:
        return []
    return [
        Verdict(
            "unnormalized_target",
            0.9,
            f"mean {mean:.3g}, deviation {deviation:.3g} (limits {limits.INPUT_RMS:g} for either, "
            f"{1 / limits.INPUT_RMS:g} for the deviation)",
            "Units of measurement that the initialization does not know: the last layer has far to go, and "
            "gradients are as large or small as the unit",
            remedies("standardize_target"),
        )
    ]


def _worst(shares: np.ndarray) -> int | None:
    return None if np.isnan(shares).all() else int(np.nanargmax(shares))


def _loss_at(task: Task, steps: int, factor: float) -> float:
    value = task.run(steps, factor=factor, share=TRIED).history[-1]["training_loss"]
    return value if math.isfinite(value) else math.inf


def _rates(trial: Trial, rates: dict[float, float]) -> list[Verdict]:
    """Whether another rate gets much further in a quarter of the steps than this one in all."""
    end = trial.history[-1]["training_loss"]
    end = end if math.isfinite(end) else math.inf
    factor = min(rates, key=lambda f: rates[f])
    if not rates[factor] < limits.OTHER_RATE * end:
        return []
    large = factor < 1
    return [
        Verdict(
            f"rate_too_{'large' if large else 'small'}",
            0.85,
            f"at {factor:g} times the rate the training loss reaches {rates[factor]:.3g} in a quarter of the steps, "
            f"at this rate {end:.3g} in all (a rate is wrong if another reaches {limits.OTHER_RATE:.0%} of it)",
            "The steps overshoot" if large else "The steps are too small to get anywhere",
            remedies(("scale_rate", factor), *(["clip"] if large else ["train_longer"]), "normalize"),
        )
    ]


def _labels(task: Task, trial: Trial, numbers: np.ndarray) -> list[Verdict]:
    """Whether many labels of a classification are contradicted."""
    x, labels = task.train
    if not isinstance(x, np.ndarray) or not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        return []
    x, labels = x[:AUDITED], labels[:AUDITED]
    if labels.ndim != 1 or len(labels) < 10 * NEIGHBOURS or labels.min() < 0:  # else the nearest are not near
        return []
    predicted = task.predict(*trial.best, x)
    if predicted.ndim != 2 or predicted.shape[1] <= labels.max():
        return []
    suspects = suspect_labels(x, labels, predicted.argmax(-1))
    share = len(suspects) / len(labels)
    if share <= limits.WRONG_LABELS:
        return []
    wrong = sorted(numbers[suspects].tolist())
    some = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
    look = (
        f"Look at these {len(wrong)} samples first: classes that overlap look the same; drop or correct what is wrong: "
        f"{some}."
    )
    return [
        Verdict(
            "wrong_labels",
            0.8,
            f"{share:.0%} of {len(labels)} labels are contradicted by the network at its best, and so by the "
            f"{NEIGHBOURS} nearest other samples (limit {limits.WRONG_LABELS:.0%})",
            "Labels that are wrong, or classes that overlap, since these look the same: look at the samples first",
            (remedy("drop_samples", wrong)._replace(sentence=look), remedy("regularize")),
        )
    ]


def _dead_at_the_end(trial: Trial, found: list[Verdict], trained: bool) -> list[Verdict]:
    """Units that died in training."""
    report = trial.reports[-1]
    worst = _worst(report.dead)
    if trained or worst is None or report.dead[worst] < limits.DEAD or any(v.name == "dead_units" for v in found):
        return []
    return [
        Verdict(
            "dead_units",
            0.75,
            f"{report.dead[worst]:.0%} of the units of {report.labels[worst]} are 0 on the whole batch at the end, "
            f"{trial.reports[0].dead[worst]:.0%} before the first step (limit {limits.DEAD:.0%})",
            "They died in training: a step too large has pushed their biases below every input",
            remedies(("scale_rate", 0.1), "use_leaky_rectifiers", "clip", "normalize"),
        )
    ]


# What brings about what: each of a group may be a consequence of any in the groups before it.
_CAUSES = (
    ("unnormalized_input", "unnormalized_target", "initialization_too_large", "initialization_too_small"),
    ("vanishing_gradient", "exploding_gradient"),
    ("rate_too_large", "rate_too_small"),
    ("dead_units",),
    ("wrong_labels",),
    ("divergence", "overfitting", "noisy_gradient", "underfitting", "not_converged"),
)


def _ranked(found: list[Verdict]) -> list[Verdict]:
    """The verdicts by certainty, halved where one that stands earlier in the chain of causes explains it."""
    ranked = []
    for verdict in found:
        place = next((i for i, group in enumerate(_CAUSES) if verdict.name in group), 0)
        above = [name for group in _CAUSES[:place] for name in group]
        explained = any(other.name in above and other.certainty >= verdict.certainty for other in found)
        ranked.append(verdict._replace(certainty=verdict.certainty / 2) if explained else verdict)
    return sorted(ranked, key=lambda verdict: -verdict.certainty)


def _healthy(trial: Trial, baseline: float) -> Verdict:
    last = trial.history[-1]
    ratio = trial.reports[0].gradient_ratio
    over_depth = "" if math.isnan(ratio) else f"; over depth the gradient changes by a factor of {ratio:.2g}"
    return Verdict(
        "healthy",
        0.7,
        f"the training loss ends at {last['training_loss'] / baseline:.0%} of the best constant prediction's, the "
        f"validation loss at {last['validation_loss'] / baseline:.0%}{over_depth}",
        "Nothing is out of order",
    )


def _constant_loss(net: Layer, loss: Callable[[Any, Any], jax.Array], data: Any) -> float:
    """The loss of the best constant prediction: the target's mean, or the classes' shares."""
    x, target = data

    def predict(key):
        return net.apply(*net.init(key, x), x, train=False)[0]

    prediction = jax.eval_shape(predict, jax.random.key(0))
    if not hasattr(prediction, "shape") or not isinstance(target, np.ndarray):
        return _positive_or_one(_untrained_loss(net, loss, x, target))
    if target.dtype.kind in "iu" and prediction.ndim == target.ndim + 1:
        counts = np.bincount(target.ravel()[target.ravel() >= 0], minlength=prediction.shape[-1])
        shares = counts[: prediction.shape[-1]] / max(counts.sum(), 1)
        constants = [np.log(np.maximum(shares, 1e-6)), shares]  # as logits, or as probabilities
    elif _is_floating(target) and target.shape == prediction.shape:
        mean = target.astype(np.float64).mean(0)
        constants = [mean]
        if target.min() >= 0 and target.max() <= 1:  # shares: the logits of softmax, and of sigmoid
            share = np.clip(mean, 1e-6, 1 - 1e-6)
            constants += [np.log(share), np.log(share / (1 - share))]
    else:
        return _positive_or_one(_untrained_loss(net, loss, x, target))
    values, refused = [], []
    for constant in constants:
        predicted = jnp.asarray(np.broadcast_to(constant, prediction.shape), prediction.dtype)
        try:
            values.append(float(loss(predicted, jnp.asarray(target))))
        except DataError as error:  # a loss of probabilities refuses logits
            refused.append(error)
    if not values:
        raise refused[0]
    usable = [value for value in values if math.isfinite(value) and value > 0]
    return min(usable) if usable else _positive_or_one(_untrained_loss(net, loss, x, target))


def _untrained_loss(net: Layer, loss: Callable[[Any, Any], jax.Array], x: Any, target: Any) -> float:
    """The loss of a fresh network, the baseline where no constant prediction is at hand."""
    x, target = jax.tree.map(jnp.asarray, (x, target))
    params, state = net.init(jax.random.key(0), x)
    return float(loss(net.apply(params, state, x, train=False)[0], target))


def _positive_or_one(value: float) -> float:
    return value if math.isfinite(value) and value > 0 else 1.0
