"""Losses (4.3): ``loss(prediction, target, *, reduction="mean")``, prediction first.

Each gives one value an example, reduced as asked: "mean" and "sum" over the examples, "none" not at all. Shapes must be
equal; they are never broadcast, since a (B, 1) prediction against (B,) targets would quietly train on B * B pairs.
Values are computed in at least float32, whatever the inputs are.

Labels are checked where they can be seen. Outside ``jit`` a label that is no class raises. Inside, where a check would
cost a transfer every step, a label gives NaN, in the loss and in the gradient: never another class's loss.
"""

from jaxnet.losses.cosine import cosine_distance, cosine_similarity
from jaxnet.losses.cross_entropy import cross_entropy, kl_divergence, sigmoid_cross_entropy, softmax_cross_entropy
from jaxnet.losses.ctc import ctc
from jaxnet.losses.hinge import hinge
from jaxnet.losses.regression import huber, mae, mse
from jaxnet.losses.spectral import multi_resolution_stft, spectral_mse, stft_magnitude

__all__ = [
    "cosine_distance",
    "cosine_similarity",
    "cross_entropy",
    "ctc",
    "hinge",
    "huber",
    "kl_divergence",
    "mae",
    "mse",
    "multi_resolution_stft",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
    "spectral_mse",
    "stft_magnitude",
]
