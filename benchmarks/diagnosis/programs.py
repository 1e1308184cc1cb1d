"""Programs with the faults that others published, each with its twin in which the fault is mended; on real data.

The kinds of fault are those of the collections that papers on debugging neural networks made of questions on public
forums, and of the faults that such papers planted; told again here in our own words and layers, no text is copied.
``source`` says whose kind it is: DL is DeepLocalize (Wardat et al., ICSE 2021), DFD DeepFD (Cao et al., ICSE 2022), UM
UMLAUT (Schoop et al., CHI 2021), AT AUTOTRAINER (Zhang et al., ICSE 2021), DC DeepCrime (Humbatova et al., ISSTA 2021),
"forums" what is often asked on Stack Overflow and the frameworks' forums.
"""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.diagnosis.real import series, standardized, tables
from benchmarks.diagnosis.sound import (
    MSE,
    Setup,
    binary,
    cancer,
    column,
    conv,
    diabetes,
    digits,
    in_units,
    iris,
    italy,
    mlp,
    on,
    relu,
    several,
    sigmoid,
    softmax,
    value,
    wine,
)
from benchmarks.diagnosis.spoiled import log_of_zero, shuffled, some_missing, sorted_by_label, standardized_by_hand
from jaxnet import initializers, layers, losses, optimizers, regularizers


class Program(NamedTuple):
    """A faulty program.

    Attributes:
      name: what is wrong with it.
      kind: of fault.
      wanted: the verdicts any of which names the fault.
      source: whose program or fault it is.
      faulty, fixed: make the program and its twin.
    """

    name: str
    kind: str
    wanted: tuple[str, ...]
    source: str
    faulty: Callable[[], Setup]
    fixed: Callable[[], Setup]


def _one_hot_of_largest(x: Any) -> Any:
    return jax.nn.one_hot(jnp.argmax(x, -1), x.shape[-1], dtype=x.dtype)


def _by_one_hot(p: Any, y: Any) -> Any:
    # What one_hot does not know it makes a row of zeros of.
    return -jnp.mean(jnp.sum(jax.nn.one_hot(y, p.shape[-1]) * jax.nn.log_softmax(p), -1))


def squared(p: Any, y: Any) -> Any:
    """A mean squared error by hand, which broadcasts."""
    return jnp.mean((p - y) ** 2)


def _drop(rate: float) -> Any:
    return layers.chain(
        layers.dense(64), relu, layers.dropout(rate), layers.dense(64), relu, layers.dropout(rate),
        layers.dense(32), relu, layers.dropout(rate), layers.dense(10),
    )  # fmt: skip


def _normal(deviation: float) -> dict[str, Any]:
    return {"kernel_init": initializers.normal(deviation)}


def _sgd(rate: float) -> Any:
    return optimizers.sgd(rate)


SCALE = ("unnormalized_input", "unnormalized_target")
OUTPUT = ("wrong_output",)
SLOW = ("rate_too_small", "not_converged", "batch_too_large")
FAST = ("rate_too_large",)
WEIGHTS = ("initialization_too_large", "initialization_too_small", "vanishing_gradient", "exploding_gradient")


def _on(kind: str, wanted: tuple[str, ...], *rows: tuple[str, str, Any, Any]) -> list[Program]:
    return [Program(name, kind, wanted, source, faulty, fixed) for name, source, faulty, fixed in rows]


PROGRAMS = (
    *_on(
        "scale", SCALE,
        ("wine in its units, tanh", "DFD",
         lambda: wine(net=mlp(32, 3, act=jnp.tanh), optimizer=_sgd(0.05), **on(tables("wine"))),
         lambda: wine(net=mlp(32, 3, act=jnp.tanh), optimizer=_sgd(0.05))),
        ("cells in their units, sigmoid", "DL",
         lambda: cancer(net=mlp(16, 1, act=sigmoid, last=(sigmoid,)), **column(tables("cancer"))),
         lambda: cancer(net=mlp(16, 1, act=sigmoid, last=(sigmoid,)))),
        ("target of a regression in its units", "UM",
         lambda: diabetes(optimizer=optimizers.adam(1e-3), **on(in_units())),
         lambda: diabetes(optimizer=optimizers.adam(1e-3))),
        ("pixels from 0 to 255", "UM: input not normalized",
         lambda: digits(optimizer=_sgd(0.01), **on(tables("digits"), x=lambda x: 16 * x)),
         lambda: digits(optimizer=_sgd(0.01), **on(tables("digits"), x=lambda x: x / 8 - 1), steps=800)),
    ),
    *_on(
        "initialization", WEIGHTS,
        ("normal(1) into tanh", "DC: change weights initialization",
         lambda: digits(net=mlp(64, 64, 64, 10, act=jnp.tanh, **_normal(1.0)), optimizer=_sgd(0.02)),
         lambda: digits(net=mlp(64, 64, 64, 10, act=jnp.tanh), optimizer=_sgd(0.02))),
        ("all weights 0", "DC: weights initialized to zeros",
         lambda: digits(net=mlp(64, 10, kernel_init=initializers.constant(0.0))),
         lambda: digits(net=mlp(64, 10))),
        ("ten sigmoid layers", "AT: gradient vanish",
         lambda: digits(net=mlp(*[32] * 10, 10, act=sigmoid)),
         lambda: digits(net=mlp(*[32] * 10, 10))),
        ("normal(0.01), six relu layers", "AT: gradient vanish",
         lambda: iris(net=mlp(*[16] * 6, 3, **_normal(0.01)), optimizer=_sgd(0.05)),
         lambda: iris(net=mlp(*[16] * 6, 3), optimizer=_sgd(0.05))),
        ("normal(1), eight relu layers", "AT: gradient explode",
         lambda: wine(net=mlp(*[32] * 8, 3, **_normal(1.0)), optimizer=_sgd(1e-3)),
         lambda: wine(net=mlp(*[32] * 8, 3), optimizer=_sgd(1e-2))),
    ),
    *_on(
        "rate too large", (*FAST, "divergence"),
        ("SGD 3 on iris", "DL",
         lambda: iris(optimizer=_sgd(3.0)), lambda: iris(optimizer=_sgd(0.05))),
        ("Adam 0.5 on digits", "UM: learning rate too high",
         lambda: digits(optimizer=optimizers.adam(0.5)), digits),
        ("Adam 1,000 on wine", "DC: change learning rate",
         lambda: wine(optimizer=optimizers.adam(1e3)), wine),
        ("SGD 1 on a regression", "DFD",
         lambda: value(optimizer=_sgd(1.0)), lambda: value(optimizer=_sgd(0.02))),
    ),
    *_on(
        "rate too small or few steps", SLOW,
        ("Adam 1e-6 on digits", "UM: learning rate too low",
         lambda: digits(optimizer=optimizers.adam(1e-6)), digits),
        ("SGD 1e-4 on wine", "AT: slow convergence",
         lambda: wine(optimizer=_sgd(1e-4)), lambda: wine(optimizer=_sgd(0.1))),
        ("SGD 1e-3 on a regression", "DFD",
         lambda: value(optimizer=_sgd(1e-4)), lambda: value(optimizer=_sgd(0.02))),
        ("60 steps of SGD 0.01", "DC: change number of epochs",
         lambda: digits(optimizer=_sgd(0.01), steps=60), lambda: digits(optimizer=_sgd(0.01), steps=1500)),
        ("80 steps of SGD 0.01 on iris", "DFD: too few epochs",
         lambda: iris(optimizer=_sgd(0.002), steps=80), lambda: iris(optimizer=_sgd(0.02), steps=1000)),
    ),
    *_on(
        "batch", SLOW,
        ("all digits in one batch", "DC: change batch size",
         lambda: digits(optimizer=_sgd(0.01), batch=1347, steps=60),
         lambda: digits(optimizer=_sgd(0.01), batch=16, steps=1500)),
        ("all of wine in one batch", "DFD: batch size",
         lambda: wine(optimizer=_sgd(0.02), batch=133, steps=60),
         lambda: wine(optimizer=_sgd(0.02), batch=8, steps=960)),
        ("all days in one batch", "DC: change batch size",
         lambda: italy(optimizer=_sgd(0.02), batch=67, steps=60),
         lambda: italy(optimizer=_sgd(0.02), batch=4, steps=1000)),
    ),
    *_on(
        "output, loss or units", OUTPUT,
        ("softmax on one unit", "DL",
         lambda: cancer(net=mlp(16, 1, last=(softmax,))), cancer),
        ("one sigmoid for ten digits", "DFD",
         lambda: digits(net=mlp(64, 1, last=(sigmoid,)), loss=binary, **column(standardized("digits"))),
         lambda: digits(net=mlp(64, 10))),
        ("a regression through a sigmoid", "UM",
         lambda: diabetes(net=mlp(16, 1, last=(sigmoid,)), **on(in_units(), y=lambda y: y / 100)),
         lambda: diabetes(**on(in_units(), y=lambda y: y / 100))),
        ("a relu in front of signed targets", "DFD",
         lambda: value(net=mlp(64, 32, 1, last=(relu,))), value),
        ("softmax twice, ten classes", "UM: softmax and from_logits",
         lambda: digits(net=mlp(64, 10, last=(softmax,)), optimizer=_sgd(0.05)),
         lambda: digits(net=mlp(64, 10), optimizer=_sgd(0.05))),
        ("several labels a sample under softmax", "DFD",
         lambda: digits(net=mlp(64, 4, last=(softmax,)), **several(standardized("digits")),
                        loss=lambda p, y: -jnp.mean(jnp.sum(y * jnp.log(jnp.clip(p, 1e-7, 1)), -1))),
         lambda: digits(net=mlp(64, 4), loss=losses.sigmoid_cross_entropy, **several(standardized("digits")))),
        ("softmax under a squared error", "DFD",
         lambda: digits(net=mlp(64, 10, last=(softmax,)), loss=MSE, optimizer=_sgd(0.05),
                        **on(standardized("digits"), y=lambda y: np.eye(10, dtype=np.float32)[y])),
         lambda: digits(net=mlp(64, 10), optimizer=_sgd(0.05))),
        ("classes from 1 to 3 of three outputs", "DFD",
         lambda: wine(loss=_by_one_hot, **on(standardized("wine"), y=lambda y: y + 1)),
         lambda: wine(loss=_by_one_hot)),
        ("a column against a row", "DFD",
         lambda: value(loss=squared, **on(
             (value().train, value().validation), y=lambda y: y[:, 0])),
         lambda: value(loss=squared)),
        ("labels -1 and 1 under a sigmoid", "DL",
         lambda: cancer(**column(standardized("cancer"), lambda y: 2 * y - 1)), cancer),
        ("relu before softmax", "DL",
         lambda: digits(net=mlp(64, 64, 10, last=(relu,)), optimizer=_sgd(0.3)),
         lambda: digits(net=mlp(64, 64, 10), optimizer=_sgd(0.3))),
        ("one sigmoid for three flowers", "DL",
         lambda: iris(net=mlp(16, 1, last=(sigmoid,)), loss=binary, **column(standardized("iris"))), iris),
    ),
    *_on(
        "labels", ("one_class", "unrelated_targets", "missing_classes"),
        ("labels divided by 255", "DL",
         lambda: digits(**on(standardized("digits"), y=lambda y: (y / 255).astype(np.int32))), digits),
        ("images and labels shuffled apart", "UM: shuffled labels",
         lambda: digits(**shuffled(standardized("digits"))), digits),
        ("sorted, and split at the end", "forums: validation split of sorted data",
         lambda: wine(**sorted_by_label("wine")), wine),
        ("series and classes shuffled apart", "DC: change labels",
         lambda: italy(**shuffled(series("ItalyPowerDemand"))), italy),
        ("targets of a regression shuffled apart", "DC: change labels",
         lambda: value(**shuffled((value().train, value().validation))), value),
    ),
    *_on(
        "regularization", ("too_much_regularization",),
        ("dropout 0.8 three times", "UM: dropout too high",
         lambda: digits(net=_drop(0.8)), lambda: digits(net=_drop(0.1))),
        ("L1 of 0.05", "DC: add weights regularization",
         lambda: wine(regularizer=regularizers.l1(0.05)), lambda: wine(regularizer=regularizers.l1(1e-4))),
        ("L2 of 1", "DC: add weights regularization",
         lambda: value(regularizer=regularizers.l2(1.0)), lambda: value(regularizer=regularizers.l2(1e-5))),
        ("a decay of 300", "DC: change optimisation function",
         lambda: digits(optimizer=optimizers.adamw(1e-3, weight_decay=300.0)),
         lambda: digits(optimizer=optimizers.adamw(1e-3, weight_decay=1e-2))),
    ),
    *_on(
        "no gradient", ("no_gradient",),
        ("argmax between two layers", "forums: argmax has no gradient",
         lambda: digits(net=layers.chain(layers.dense(16), _one_hot_of_largest, layers.dense(10))),
         lambda: digits(net=layers.chain(layers.dense(16), softmax, layers.dense(10)),
                        optimizer=optimizers.adam(1e-2))),
        ("features detached", "forums: detach in forward",
         lambda: digits(net=layers.chain(layers.dense(8), relu, jax.lax.stop_gradient, layers.dense(10))),
         lambda: digits(net=mlp(8, 10))),
        ("hidden units rounded", "forums: rounding has no gradient",
         lambda: value(net=layers.chain(layers.dense(4), jnp.round, layers.dense(1))),
         lambda: value(net=layers.chain(layers.dense(4), jnp.tanh, layers.dense(1)),
                       optimizer=optimizers.adam(1e-2))),
        ("the loss compares classes", "forums: accuracy as a loss",
         lambda: iris(loss=lambda p, y: jnp.mean((jnp.argmax(p, -1) != y).astype(p.dtype))), iris),
    ),
    *_on(
        "missing activation", ("missing_activations",),
        ("dense layers without activation", "DFD: missing activation",
         lambda: value(net=mlp(64, 32, 1, act=None)), value),
        ("convolutions without activation", "DC: remove activation function",
         lambda: conv(act=None), conv),
        ("one activation of three left out", "DC: remove activation function",
         lambda: value(net=layers.chain(layers.dense(64), layers.dense(64), layers.dense(1))), value),
    ),
    *_on(
        "too small", ("underfitting",),
        ("one unit for ten digits", "DFD: number of neurons",
         lambda: digits(net=mlp(1, 10, act=jnp.tanh)), lambda: digits(net=mlp(64, 10, act=jnp.tanh))),
        ("a line for a curve", "DFD: layer number",
         lambda: value(net=layers.dense(1)), lambda: value(net=mlp(64, 1))),
        ("two units for leaves", "DFD: number of neurons",
         lambda: conv(net=layers.chain(layers.conv(1, 9, strides=3), relu, layers.global_avg_pool(),
                                       layers.dense(6))), conv),
    ),
    *_on(
        "values", ("non_finite_data",),
        ("three values missing", "UM: NaN in the input", lambda: wine(**some_missing(standardized("wine"))), wine),
        ("divided by a deviation of 0", "DL: NaN loss",
         lambda: digits(**standardized_by_hand(tables("digits"))), digits),
        ("logarithm of 0", "forums: NaN loss",
         lambda: diabetes(**log_of_zero(standardized("diabetes"))), diabetes),
    ),
    *_on(
        "evaluation", ("evaluation_differs",),
        ("averages of batch norm that never arrive", "forums: batch norm in evaluation",
         lambda: digits(net=_normed(0.9999), **on(tables("digits"))),
         lambda: digits(net=_normed(0.9), **on(tables("digits")))),
        ("so of a regression", "forums: batch norm in evaluation",
         lambda: value(net=_normed(0.9999, 1), train=(tables("digits")[0][0], value().train[1]),
                       validation=(tables("digits")[1][0], value().validation[1])),
         lambda: value(net=_normed(0.9, 1), train=(tables("digits")[0][0], value().train[1]),
                       validation=(tables("digits")[1][0], value().validation[1]))),
        ("so of wine in its units", "forums: batch norm in evaluation",
         lambda: wine(net=_normed(0.9999, 3), **on(tables("wine"))),
         lambda: wine(net=_normed(0.9, 3), **on(tables("wine")))),
    ),
)  # fmt: skip


def _normed(decay: float, outputs: int = 10) -> Any:
    return layers.chain(
        layers.dense(32), layers.batch_norm(decay=decay), relu, layers.dense(32),
        layers.batch_norm(decay=decay), relu, layers.dense(outputs),
    )  # fmt: skip


def _drawn() -> frozenset[str]:
    drawer, names = random.Random("held out"), []
    for kind in dict.fromkeys(program.kind for program in PROGRAMS):
        of_kind = [program.name for program in PROGRAMS if program.kind == kind]
        names += drawer.sample(of_kind, round(len(of_kind) / 3))
    return frozenset(names)


HELD_OUT = _drawn() - {"relu before softmax"}
"""A third of each kind, drawn before any rule was written for these kinds, and not looked at while they were; but for
what a rule was changed for after it had been missed."""
