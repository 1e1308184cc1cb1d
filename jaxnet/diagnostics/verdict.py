"""A verdict on a training run: what is wrong, how sure that is, on what evidence, why, and what to do about it."""

from typing import Any, NamedTuple

from jaxnet._tables import few


class Remedy(NamedTuple):
    """Something to change.

    Attributes:
      action: its identifier, one of `ACTIONS`, for programs.
      topic: what it changes, in the chapter's terms: data, activation, initialization, normalization, residual,
        clipping, regularization, rate, batch, architecture or training.
      sentence: what to do, for people.
      value: what the action needs: the factor on the rate, the samples to drop, the batch size; else None.
    """

    action: str
    topic: str
    sentence: str
    value: Any = None


class Verdict(NamedTuple):
    """One thing that is wrong with a run, or "healthy".

    Attributes:
      name: its identifier.
      certainty: from 0 to 1: how sure it is that this is there and is no consequence of another verdict. It ranks
        kinds of evidence (data looked at before layers measured before experiments before curves); it is no
        probability.
      evidence: the numbers, and the thresholds that they passed.
      cause: what brings it about.
      remedies: what to do, the likeliest to help first.
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
        lines += [f"  {i}. {remedy.sentence}" for i, remedy in enumerate(self.remedies, 1)]
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
    "larger_batch": ("batch", "Take a larger batch, of {value:d} samples, or average over several (accumulate)."),
    "regularize": (
        "regularization",
        "Regularize: layers.dropout, regularizers.l2 by training.stepping, or early_stopping in training.fit.",
    ),
    "shrink": ("architecture", "Take a smaller network."),
    "widen": ("architecture", "Take a larger network: more units a layer first, then more layers."),
    "train_longer": ("training", "Train longer."),
}
"""Every action: its topic, and its sentence."""


def remedy(action: str, value: Any = None) -> Remedy:
    """The remedy of an action."""
    topic, sentence = ACTIONS[action]
    if action in ("drop_samples", "drop_validation_samples"):
        return Remedy(action, topic, sentence.format(count=len(value), samples=few(value, 8)), tuple(value))
    return Remedy(action, topic, sentence.format(value=value), value)


def remedies(*actions: Any) -> tuple[Remedy, ...]:
    """Several remedies: an action, or a pair of an action and its value, each."""
    return tuple(remedy(*action) if isinstance(action, tuple) else remedy(action) for action in actions)
