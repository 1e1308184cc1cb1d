"""Pictures of a diagnosis, in black, white and grey; they need matplotlib."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import activations
from jaxnet._figures import figure, saved
from jaxnet.diagnostics import _rows
from jaxnet.diagnostics.layer_report import LayerReport
from jaxnet.errors import ConfigError, named
from jaxnet.layers.layer import as_layer
from jaxnet.training.history import History

__all__ = [
    "activation_functions",
    "activation_histograms",
    "gradient_flow",
    "learning_curves",
    "rate_range",
    "weights_over_time",
]

FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "ReLU": activations.relu,
    "leaky ReLU, a = 1/3": lambda x: activations.leaky_relu(x, 1 / 3),
    "sigmoid": activations.sigmoid,
    "tanh": activations.tanh,
}
"""The activation functions that the chapter draws: figures 4.6 and 4.7 and the two after them."""

_BINS = 60


@named("activation_functions")
def activation_functions(
    path: Any, functions: dict[str, Callable[[jax.Array], jax.Array]] | None = None, *, reach: float = 5.0
) -> Path:
    """Draws activation functions, solid, and their derivatives, dashed.

    Args:
      path: of the picture.
      functions: by name, elementwise functions of an array of any shape; the four that the chapter draws unless given.
      reach: the largest absolute value of x.

    Returns:
      The picture's path.

    Raises:
      DependencyError: matplotlib is not installed.
      ConfigError: ``path`` is none.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> from jaxnet.diagnostics import pictures
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     pictures.activation_functions(f"{folder}/sine.png", {"sine": jnp.sin}).name
      'sine.png'

    Source: chapter 4.2, figures 4.6 and 4.7 and those of sigmoid and tanh.
    """
    functions = functions or FUNCTIONS
    x = jnp.linspace(-reach, reach, 2001, dtype=jnp.float32)
    picture, axes = figure(len(functions))
    for ax, (name, f) in zip(axes, functions.items(), strict=True):
        slope = np.array(jax.vmap(jax.grad(f))(x))
        slope[1:][np.abs(np.diff(slope)) > 0.1] = np.nan  # at a kink the derivative jumps: draw no line there
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.axvline(0, color="0.6", linewidth=0.8)
        ax.plot(x, f(x), "k-", label="σ(x)")
        ax.plot(x, slope, "k--", label="dσ/dx")
        ax.set(title=name, xlabel="x", ylabel="σ(x) and dσ/dx")
        ax.legend()
    return saved(picture, path)


@named("gradient_flow")
def gradient_flow(path: Any, reports: Sequence[LayerReport], labels: Sequence[str]) -> Path:
    """Draws the norm of the gradient at every layer with a kernel, over depth, a line a report.

    A norm of exactly 0 has no logarithm: it is a cross below all others.

    Args:
      path: of the picture.
      reports: of networks, or of one network at several times; 12 at most.
      labels: what each is called.

    Returns:
      The picture's path.

    Raises:
      DependencyError: matplotlib is not installed.
      ConfigError: ``path`` is none, or more reports than lines can be told apart.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> from jaxnet import diagnostics, layers, losses, optimizers
      >>> from jaxnet.diagnostics import pictures
      >>> net, x = layers.dense(1), jnp.ones((4, 1))
      >>> report = diagnostics.layer_report(net, losses.mse, *net.init(0, x), (x, x), optimizer=optimizers.sgd(0.1))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     pictures.gradient_flow(f"{folder}/flow.png", [report], ["at the start"]).name
      'flow.png'

    Source: chapter 4.6.3.
    """
    styles = _styles()
    if len(reports) > len(styles):
        raise ConfigError(f"{len(styles)} reports can be told apart, got {len(reports)}; draw some, as reports[::2]")
    picture, (ax,) = figure(1, width=6.4, height=3.6)
    flows = [np.asarray(report.activation_gradient)[report.kernels] for report in reports]
    drawn = [float(norm) for norms in flows for norm in norms if np.isfinite(norm) and norm > 0]
    bottom, zeros = min(drawn, default=1.0) / 10, set[int]()
    for norms, label, style in zip(flows, labels, styles[: len(flows)], strict=True):
        depth = np.arange(1, len(norms) + 1)
        ax.plot(depth, np.where(norms > 0, norms, np.nan), markersize=4, label=label, **style)
        zeros |= set(depth[norms == 0].tolist())
    if zeros:
        ax.plot(sorted(zeros), [bottom] * len(zeros), "kx", markersize=7, label="exactly 0")
    ax.set_yscale("log")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="layer with a kernel, from the input", ylabel="norm of ∂loss/∂output")
    ax.legend()
    return saved(picture, path)


@named("activation_histograms")
def activation_histograms(path: Any, net: Any, params: Any, state: Any, x: Any, *, most: int = 12) -> Path:
    """Draws how the outputs of every layer are distributed, a panel a layer; of many layers some, evenly spread.

    Args:
      path: of the picture.
      net: a `Layer`.
      params: its parameters.
      state: its state.
      x: inputs, an array (batch, ...) or a tree of such.
      most: how many panels there may be.

    Returns:
      The picture's path.

    Raises:
      DependencyError: matplotlib is not installed.
      ConfigError: ``path`` is none, or what is no network.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> from jaxnet.diagnostics import pictures
      >>> net, x = layers.dense(3), jnp.ones((4, 2))
      >>> params, state = net.init(0, x)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     pictures.activation_histograms(f"{folder}/outputs.png", net, params, state, x).name
      'outputs.png'

    Source: chapter 4.6.3; Glorot and Bengio 2010, [29], who look at activations by layer.
    """
    net = as_layer(net, "net")
    values = _rows.evaluated(net, lambda layer, y: y if hasattr(y, "dtype") else jnp.zeros(0))(params, state, x)
    rows = [row for row in _rows.expanded(net, values) if values[row[1]].size]
    chosen = _spread(rows, most)
    picture, axes = figure(len(chosen), columns=4, width=2.8, height=2.2)
    for ax, (label, leaf, copy) in zip(axes, chosen, strict=True):
        outputs = np.asarray(values[leaf][copy], np.float32).ravel()
        finite = outputs[np.isfinite(outputs)]
        if finite.size:
            ax.hist(finite, bins=_BINS, weights=np.full(finite.size, 1 / outputs.size), color="0.35")
        zero, deviation = np.mean(outputs == 0), finite.std() if finite.size else np.nan
        ax.set_title(f"{label}\ndeviation {deviation:.2g}" + (f", {zero:.0%} zeros" if zero > 0.01 else ""), fontsize=8)
        ax.set_xlabel("output", fontsize=8)
        ax.set_ylabel("share", fontsize=8)
        ax.tick_params(labelsize=7)
        ax.locator_params(axis="x", nbins=4)
    return saved(picture, path)


@named("learning_curves")
def learning_curves(path: Any, history: History, *, baseline: float | None = None, verdict: Any = None) -> Path:
    """Draws the losses over the steps, with the verdict and what it rests on marked.

    Args:
      path: of the picture.
      history: of the run.
      baseline: the loss of the best constant prediction, a dotted line.
      verdict: a `Verdict` to write above the picture; of overfitting the best step is marked.

    Returns:
      The picture's path.

    Raises:
      DependencyError: matplotlib is not installed.
      ConfigError: ``path`` is none, or the history is empty.

    Example:
      >>> import tempfile
      >>> from jaxnet.diagnostics import pictures
      >>> from jaxnet.training import History
      >>> history = History([{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}])
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     pictures.learning_curves(f"{folder}/curves.png", history, baseline=1.2).name
      'curves.png'

    Source: chapter 4.6.2.
    """
    if not len(history):
        raise ConfigError("there is nothing to draw, no epoch was completed")
    picture, (ax,) = figure(1, width=6.4, height=3.6)
    steps = history["step"] if "step" in history.names else history["epoch"]
    training = history["training_loss" if "training_loss" in history.names else "loss"]
    curves = [("training", training, "k-o")]
    if "validation_loss" in history.names:
        curves.append(("validation", history["validation_loss"], "k--s"))
    for label, values, style in curves:
        ax.plot(steps, np.where(np.isfinite(values), values, np.nan), style, markersize=3, label=label)
    if "loss_deviation" in history.names:
        low = np.maximum(history["loss"] - history["loss_deviation"], 0)
        ax.fill_between(
            steps, low, history["loss"] + history["loss_deviation"], color="0.85", label="batches ± deviation"
        )
    shown = np.concatenate([values[np.isfinite(values)] for _, values, _ in curves])
    if baseline is not None:
        ax.axhline(baseline, color="0.3", linestyle=":", label="best constant prediction")
        shown = np.append(shown, baseline)
    if shown.size and shown.min() > 0 and shown.max() > 20 * shown.min():
        ax.set_yscale("log")
        ax.set_ylim(shown.min() / 1.3, 1.3 * shown.max())
    elif shown.size and shown.any():  # of the band only what is near the curves; and what is flat looks flat
        margin = 0.1 * max(shown.max() - shown.min(), np.abs(shown).max())
        ax.set_ylim(shown.min() - margin, shown.max() + margin)
    validation = curves[-1][1]
    if verdict is not None:
        ax.set_title(verdict.title)
        if verdict.name == "overfitting" and np.isfinite(validation).any():
            best = int(np.nanargmin(validation))
            ax.axvline(steps[best], color="0.5", linewidth=0.8)
            ax.annotate(
                "best validation", (steps[best], ax.get_ylim()[1]), fontsize=8, rotation=90, va="top", ha="right"
            )
    ax.set(xlabel="step" if "step" in history.names else "epoch", ylabel="loss")
    ax.legend(fontsize=8)
    return saved(picture, path)


@named("weights_over_time")
def weights_over_time(path: Any, reports: Sequence[LayerReport], steps: Sequence[int]) -> Path:
    """Draws each layer's weight norm and its update over weight, over the steps; the layers from dark to light.

    Args:
      path: of the picture.
      reports: of one network at several times.
      steps: these times, in steps of the training.

    Returns:
      The picture's path.

    Raises:
      DependencyError: matplotlib is not installed.
      ConfigError: ``path`` is none.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> from jaxnet import diagnostics, layers, losses, optimizers
      >>> from jaxnet.diagnostics import pictures
      >>> net, x = layers.dense(1), jnp.ones((4, 1))
      >>> report = diagnostics.layer_report(net, losses.mse, *net.init(0, x), (x, x), optimizer=optimizers.sgd(0.1))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     pictures.weights_over_time(f"{folder}/weights.png", [report, report], steps=[0, 100]).name
      'weights.png'

    Source: chapter 4.6.3.
    """
    picture, (left, right) = figure(2, width=4.6, height=3.4)
    for row, style in zip(_spread(reports[0].kernels, 6), _styles(), strict=False):
        for ax, name in ((left, "weight_norm"), (right, "update_ratio")):
            values = np.array([float(getattr(report, name)[row]) for report in reports])
            ax.plot(steps, np.where(values > 0, values, np.nan), markersize=3, label=reports[0].labels[row], **style)
    right.axhline(1e-3, color="0.5", linestyle=":")
    right.annotate("0.001", (1.0, 1e-3), xycoords=("axes fraction", "data"), fontsize=8, va="bottom", ha="right")
    left.set(xlabel="step", ylabel="norm of the weights", yscale="log")
    right.set(xlabel="step", ylabel="norm of the update / norm of the weights", yscale="log")
    left.legend(fontsize=7)
    return saved(picture, path)


@named("rate_range")
def rate_range(found: Any, path: Any) -> Path:
    """Draws the loss of a `RateRange` against the factor on the rate.

    Args:
      found: what `rate_range_test` returned.
      path: of the picture.

    Returns:
      The picture's path.

    Raises:
      DependencyError: matplotlib is not installed.
      ConfigError: ``path`` is none.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from jaxnet import diagnostics
      >>> from jaxnet.diagnostics import pictures
      >>> factors, seen = np.geomspace(0.01, 10, 4), np.array([1.0, 0.5, 0.1, 9.0])
      >>> found = diagnostics.RateRange(factors, losses=seen, smoothed=seen, largest=1.0, suggested=0.1)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     pictures.rate_range(found, f"{folder}/rates.png").name
      'rates.png'

    Source: Smith 2017, arXiv 1506.01186, section 3.3; chapter 4.6.2.
    """
    picture, (ax,) = figure(1, width=6.4, height=3.6)
    ax.plot(found.factors, found.losses, color="0.7", linewidth=0.8, label="batches")
    ax.plot(found.factors, found.smoothed, "k-", label="running mean")
    ax.axvline(found.largest, color="k", linestyle="--", label=f"largest of use, {found.largest:.2g}")
    ax.axvline(found.suggested, color="k", linestyle=":", label=f"suggested, {found.suggested:.2g}")
    finite = found.smoothed[np.isfinite(found.smoothed)]
    if finite.size:
        low, high = finite.min(), max(found.smoothed[0], finite.min() * 1.5)
        ax.set_ylim(low - 0.1 * (high - low), high + 0.3 * (high - low))
    ax.set(xscale="log", xlabel="factor on the learning rate", ylabel="loss")
    ax.legend(fontsize=8)
    return saved(picture, path)


def _spread(rows: Any, most: int) -> list[Any]:
    """So many of the rows, evenly spread."""
    return [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))]


def _styles() -> list[dict[str, Any]]:
    """Lines that differ in dash and marker as well as in shade."""
    dashes, markers = ("-", "--", ":", "-."), ("o", "s", "^", "v", "D", "x")
    return [{"color": str(0.6 * (i % 3) / 2), "linestyle": dashes[i % 4], "marker": markers[i % 6]} for i in range(12)]
