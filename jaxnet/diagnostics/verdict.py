"""A verdict on a training run: what is wrong, how sure that is, on what evidence, why, and what to do about it."""

from typing import Any, NamedTuple

from jaxnet._tables import few


class Remedy(NamedTuple):
    """Something to change, as `diagnose` advises it.

    Attributes:
      action: its identifier, one of `ACTIONS`, for programs.
      topic: what it changes, in the chapter's terms: data, activation, initialization, normalization, residual,
        clipping, regularization, rate, batch, architecture, loss or training.
      sentence: what to do, for people.
      value: what the action needs: the factor on the rate, the samples to drop, the batch size; else None.
      seen: what it did where it was tried, or that it was not.
    """

    action: str
    topic: str
    sentence: str
    value: Any = None
    seen: str = ""

    def __str__(self) -> str:
        return f"{self.sentence} [{self.seen}]" if self.seen else self.sentence


class Verdict(NamedTuple):
    """One thing that `diagnose` or `curves_report` finds wrong with a run, or "healthy".

    Attributes:
      name: its identifier.
      certainty: from 0 to 1: how sure it is that this is there and is no consequence of another verdict. It ranks
        kinds of evidence (data looked at before layers measured before experiments before curves); it is no
        probability.
      evidence: the numbers, and the thresholds that they passed.
      cause: what brings it about.
      remedies: what to do, the likeliest to help first; none of "healthy", nor where all would be the opposite of the
        rate that the first verdict advises.
    """

    name: str
    certainty: float
    evidence: str
    cause: str
    remedies: tuple[Remedy, ...] = ()

    @property
    def title(self) -> str:
        """Its name in words, and how sure it is."""
        return f"{self.name.replace('_', ' ')} (certainty {self.certainty:.2f})"

    def __str__(self) -> str:
        lines = [self.title, f"  evidence: {self.evidence}", f"  cause: {self.cause}"]
        lines += [f"  {i}. {remedy}" for i, remedy in enumerate(self.remedies, 1)]
        return "\n".join(lines)


ACTIONS = {
    "drop_samples": ("data", "Drop or repair {count} samples: {samples}."),
    "standardize_input": (
        "data",
        "Standardize the input: subtract each feature's mean over the training set and divide by its deviation.",
    ),
    "drop_validation_samples": ("data", "Drop or repair {count} validation samples: {samples}."),
    "standardize_target": (
        "data",
        "Standardize the target: subtract its mean over the training set and divide by its deviation; undo both on "
        "what the network predicts.",
    ),
    "more_data": ("data", "Train on more data, or augment what there is."),
    "initialize": (
        "initialization",
        "Initialize so that every layer keeps the variance of its input: initializers.he_normal() before rectifiers, "
        "glorot_normal() before tanh and sigmoid, lecun_normal() elsewhere, and biases 0.",
    ),
    "use_rectifiers": (
        "activation",
        "Use activations that do not saturate: activations.relu with initializers.he_normal().",
    ),
    "use_leaky_rectifiers": (
        "activation",
        "Use rectifiers without a dead side: activations.leaky_relu, layers.prelu or activations.elu.",
    ),
    "normalize": ("normalization", "Put layers.batch_norm() or layers.layer_norm() before the activations."),
    "residual": ("residual", "Give the gradient a way around: layers.residual around every layer or two."),
    "clip": ("clipping", "Clip the gradient: optimizers.chain(optimizers.clip_by_global_norm(1.0), ...)."),
    "scale_rate": ("rate", "Multiply the learning rate by {value:g}."),
    "plain_optimizer": ("rate", "Take optimizers.adam(1e-3) alone: a constant rate, and no clip or factor{then}."),
    "larger_batch": ("batch", "Take a larger batch, of {value:d} samples, or average over several (accumulate)."),
    "regularize": (
        "regularization",
        "Regularize: layers.dropout, regularizers.l2 by training.stepping, or early_stopping in training.fit.",
    ),
    "shrink": ("architecture", "Take a smaller network."),
    "widen": ("architecture", "Take a larger network: more units a layer first, then more layers."),
    "train_longer": ("training", "Train longer{about}."),
    "deepen": ("architecture", "Put a hidden layer before the last: layers.dense(64), activations.relu."),
    "add_activations": ("activation", "Put an activation between {between}: activations.relu."),
    "less_regularization": ("regularization", "Regularize less: {less}."),
    "smaller_batch": (
        "batch",
        "Take a smaller batch, of {value:d} samples, for as many epochs: so many more steps are taken on the way.",
    ),
    "drop_output_function": ("architecture", "Leave out {function} behind the last layer."),
    "use_cross_entropy": (
        "loss",
        "Give the last layer {value:d} outputs, one a class, with nothing behind it, integer labels from 0 to "
        "{last:d}, and losses.softmax_cross_entropy.",
    ),
    "use_sigmoid_cross_entropy": (
        "loss",
        "Give the last layer one output a label, with nothing behind it, labels 0 and 1, and "
        "losses.sigmoid_cross_entropy.",
    ),
    "reshape_target": ("data", "Reshape the target to the prediction's shape, target.reshape({shape})."),
    "shift_labels": ("data", "Count the classes from 0: labels - {value:d}."),
    "change_loss": ("loss", "Take a loss that is lowest where prediction and target agree: {loss}."),
    "shift_loss": (
        "loss",
        "Turn its sign round, if it is the wrong way; else add a constant, so that its lowest is 0, if it has one.",
    ),
    "restore_labels": ("data", "Look at the labels as they were read, and at what is done to them before training."),
    "pair_again": (
        "data",
        "Look at some samples beside their targets: each must be of the other. Shuffle both by the same numbers, "
        "x[order] and y[order], or by data.split.",
    ),
    "split_again": ("data", "Shuffle before splitting, each class alike: data.split(x, y, stratify=labels)."),
    "drop_duplicates": ("data", "Drop samples that are there twice before splitting: numpy.unique(x, axis=0)."),
    "let_gradient_through": (
        "architecture",
        "Take in the place of {layer} what has a derivative: softmax for argmax, a sigmoid for a comparison, nothing "
        "for a rounding, a cast or jax.lax.stop_gradient.",
    ),
    "differentiable_loss": (
        "loss",
        "Minimize a loss that has a derivative, losses.softmax_cross_entropy or losses.mse, and look at this one as a "
        "metric.",
    ),
    "move_parameters": ("rate", "Take an optimizer with a rate above 0 that moves all parameters."),
    "reestimate": (
        "normalization",
        "Let the averages follow: layers.batch_norm(decay=0.9), larger batches, or training.reestimate after training.",
    ),
    "repair_columns": ("data", "Repair or drop the features {features}: where a deviation is 0, divide by 1."),
    "add_features": ("data", "Look at how x is made: no feature of it differs between samples."),
    "more_samples": ("data", "Give at least 4 samples, and 100 or more to learn from."),
    "use_jax_numpy": (
        "loss",
        "Write {what} with jax.numpy: jnp for np, jnp.where for if, and neither float(...) nor .item(), which JAX "
        "cannot compile and differentiate.",
    ),
    "as_arrays": ("data", "Give arrays of numbers: {how}."),
}
"""Every action: its topic, and its sentence."""


def remedy(action: str, value: Any = None, **words: str) -> Remedy:
    """The remedy of an action; ``words`` fill its sentence."""
    topic, sentence = ACTIONS[action]
    if action in ("drop_samples", "drop_validation_samples"):
        return Remedy(action, topic, sentence.format(count=len(value), samples=few(value, 8)), tuple(value))
    if action == "train_longer":
        words["about"] = f", about {value:,d} steps if the loss goes on falling as it did" if value else ""
    if action == "plain_optimizer":
        words = {"then": ""} | words
    if action == "reshape_target":
        words["shape"] = ", ".join(["len(target)", *map(str, value)])
    if action == "use_cross_entropy":
        words["last"] = value - 1
    return Remedy(action, topic, sentence.format(value=value, **words), value)


def remedies(*actions: Any) -> tuple[Remedy, ...]:
    """Several remedies: one, an action, or a pair of an action and its value, each."""
    made = (action if isinstance(action, Remedy) else None for action in actions)
    return tuple(
        one or (remedy(*action) if isinstance(action, tuple) else remedy(action))
        for one, action in zip(made, actions, strict=True)
    )
