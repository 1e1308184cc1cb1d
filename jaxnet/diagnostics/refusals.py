"""Data and programs with which no step can be made: what stands in the way, as a verdict."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet._tables import few
from jaxnet.diagnostics._arrays import Loss, is_floating
from jaxnet.diagnostics.score import targets
from jaxnet.diagnostics.verdict import Remedy, Verdict, remedies, remedy
from jaxnet.layers.layer import Layer


class Refusal(Exception):
    """Nothing can be trained; ``verdict`` says why."""

    def __init__(self, verdict: Verdict):
        super().__init__(verdict.evidence)
        self.verdict = verdict


def refused(name: str, evidence: str, cause: str, *cures: Any) -> Refusal:
    """A refusal with its verdict, of which there is no doubt."""
    return Refusal(Verdict(name, 1.0, evidence, cause, remedies(*cures)))


def without_samples(finite: int, total: int, which: str, columns: np.ndarray) -> Refusal:
    """Fewer samples than can be trained on and validated."""
    if finite == total:
        return refused(
            "too_few_samples",
            f"{total} sample{'s' * (total != 1)}{which}, at least 4 are needed",
            "From so few nothing can be learned that holds for others; or the data ended, or were indexed, too early",
            "more_samples",
        )
    cures: list[Any] = [remedy("repair_columns", features=few(columns, 8))] if len(columns) else []
    where = f"; the features {few(columns, 8)} in all of them" if len(columns) else ""
    return refused(
        "non_finite_data",
        f"{total - finite} of {total} samples{which} hold NaN or Inf{where}; without them at least 4 must be left",
        "A feature that never varies was divided by its deviation, which is 0; or a logarithm was taken of 0",
        *cures,
    )


def unbounded(lowest: float) -> Refusal:
    """A loss that has no lowest value."""
    if not math.isfinite(lowest):
        return refused(
            "negative_loss",
            f"the loss is below 0, and with predictions that are free to choose it is {lowest:.3g}: its lowest value "
            f"is not to be found",
            "The loss has no lowest value that is a number; how near a run has come to its best cannot be told, since "
            "the rules are ratios of losses",
            "shift_loss",
        )
    return refused(
        "negative_loss",
        f"with predictions that are free to choose the loss falls to {lowest:.3g} and is still falling",
        "The loss has no lowest value: its sign is the wrong way round, it is a likelihood of densities, or a "
        "cross-entropy of targets outside 0 to 1; how near a run has come to its best cannot be told, since the rules "
        "are ratios of losses",
        "shift_loss",
    )


def check(net: Layer, loss: Loss, pair: Any, which: str = "") -> None:
    """Raises a `Refusal` where the network refuses an input or the loss a target."""
    x, target = jax.tree.map(lambda leaf: jnp.asarray(leaf[:4]), pair)
    try:
        params, state = net.init(jax.random.key(0), x)
        prediction, _ = net.apply(params, state, x, train=False)
    except Exception as error:  # whatever the network or a function of the user's raises is the finding
        raise _untraced("the network", error) or refused(
            "wrong_input",
            f"the network refuses the inputs{which}, {_kinds(x)}: {said(error)}",
            "The inputs are not what the first layers are made for",
            remedy("as_arrays", how=_inputs(x)),
        ) from error
    try:
        value = jnp.asarray(loss(prediction, target))
        if value.shape != ():
            raise TypeError(f"it returned an array of shape {value.shape}, where one number is wanted")
        jax.eval_shape(
            lambda x, y: loss(net.apply(params, state, x, train=False)[0], y), x, target
        )  # as it is compiled
    except Exception as error:  # as above
        raise _untraced("the network and the loss", error) or _target(prediction, pair[1], error, which) from error


def _untraced(what: str, error: BaseException | None) -> Refusal | None:
    """A refusal of what asks for values where JAX compiles; None of other errors."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    asked = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError,
             jax.errors.TracerIntegerConversionError, jax.errors.NonConcreteBooleanIndexError)  # fmt: skip
    found = next((one for one in causes if isinstance(one, asked)), None)
    if found is None:
        return None
    return refused(
        "not_traceable",
        f"{what} cannot be compiled: {said(found)}",
        "NumPy, a Python if, float(...) or .item() asks for the values of an array; JAX compiles and differentiates "
        "before there are any",
        remedy("use_jax_numpy", what=what),
    )


def of_target(net: Layer, pair: Any, error: Exception) -> Refusal:
    """Where the loss took the first samples and refuses others."""
    x = jax.tree.map(lambda leaf: jnp.asarray(leaf[:4]), pair[0])
    prediction = jax.eval_shape(lambda key: net.apply(*net.init(key, x), x, train=False)[0], jax.random.key(0))
    return _target(prediction, pair[1], error, "")


def _target(prediction: Any, target: Any, error: Exception, which: str) -> Refusal:
    cures: list[Remedy] = []
    shape = getattr(prediction, "shape", None)
    found = targets(target)
    if isinstance(target, np.ndarray) and shape:
        whole = bool(found.values)
        if is_floating(target) and target.ndim == len(shape) - 1 and whole:
            cures.append(remedy("as_arrays", how="labels as integers of shape (samples,), labels.astype(numpy.int32)"))
        elif is_floating(target) and target.ndim == len(shape) and target.shape[1:] == (1,) != shape[1:] and whole:
            cures.append(remedy("as_arrays", how="labels as integers, labels[:, 0].astype(numpy.int32)"))
        elif math.prod(target.shape[1:]) == math.prod(shape[1:]) and target.shape[1:] != shape[1:]:
            if one_order(target.shape, shape):
                cures.append(remedy("reshape_target", tuple(shape[1:])))
            else:
                axes = ", ".join(map(str, shape[1:]))
                cures.append(remedy("as_arrays", how=f"targets with the axes of the prediction, (samples, {axes})"))
        elif not is_floating(target) and target.ndim == len(shape):
            cures.append(remedy("as_arrays", how="targets of floating point, targets.astype(numpy.float32)"))
        elif target.dtype.kind == "b":
            cures.append(remedy("as_arrays", how="labels as integers, labels.astype(numpy.int32)"))
        elif found.kind == "classes" and found.values and found.values[0] < 0:
            cures += _below_0(found.values, shape[-1])
        elif found.kind == "classes" and found.values and shape[-1] <= found.values[-1]:
            low, high = int(found.values[0]), int(found.values[-1])
            if high - low < shape[-1]:
                cures.append(remedy("shift_labels", low))
            cures.append(remedy("use_cross_entropy", high + 1))
    predicted = f"predictions of {_kinds(prediction)}"
    return refused(
        "wrong_target",
        f"the loss refuses {predicted} with targets{which} of {_kinds(target)}: {said(error)}",
        "Prediction and target are not of the shape, the type or the range that this loss compares",
        *cures,
    )


def one_order(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether arrays of these shapes hold the same numbers in the same order: no axes have changed places."""
    long, wide = ([size for size in shape[1:] if size > 1] for shape in (one, other))
    return long == wide or min(len(long), len(wide)) < 2


def _below_0(values: tuple[float, ...], outputs: int) -> list[Remedy]:
    """What may be done about labels below 0."""
    count = "labels counted from 0, numpy.unique(labels, return_inverse=True)[1].astype(numpy.int32)"
    left_out = "only samples that have a label, those of labels >= 0, if what is below 0 stands for none"
    marks = len(values) > outputs or (len(values) > 2 and values[1] == 0)
    return [remedy("as_arrays", how=how) for how in ((left_out, count) if marks else (count, left_out))]


def _kinds(tree: Any) -> str:
    leaves = jax.tree.leaves(tree)
    return ", ".join(f"shape (n{''.join(f', {size}' for size in leaf.shape[1:])}) and {leaf.dtype}" for leaf in leaves)


def _inputs(x: Any) -> str:
    if any(not is_floating(leaf) for leaf in jax.tree.leaves(x)):
        return "inputs of floating point, x.astype(numpy.float32), but for numbers of tokens"
    return "one array, or the tuple or dict of arrays that the network takes, (samples, ...) each"


def said(error: Exception) -> str:
    """What an error says, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}"


def _batches(data: Any) -> bool:
    """Whether a list of two is one of two batches: each is a pair of arrays of as many samples."""

    def whole(batch):
        sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
        return isinstance(batch, (tuple, list)) and len(batch) == 2 and len(sizes) == 1 and () not in sizes

    return isinstance(data, list) and all(whole(batch) for batch in data)


def gathered(data: Any, most: int) -> Any:
    """The first samples of an iterable of batches ``(x, target)``, joined; what is no such iterable as it is."""
    two = isinstance(data, (tuple, list)) and len(data) == 2 and not _batches(data)
    if two or not hasattr(data, "__iter__") or isinstance(data, dict):
        return data
    batches, count = [], 0
    for batch in data:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            return data
        batches.append(tuple(batch))
        sizes = [np.shape(leaf)[:1] for leaf in jax.tree.leaves(batches[-1])]
        if () in sizes:
            raise refused(
                "wrong_input", "the iterable gives single samples: of one of them x or target is a number",
                "It is no iterable of batches",
                remedy("as_arrays", how="a pair (x, target) of arrays, or an iterable of batches of several samples"),
            )  # fmt: skip
        count += max((size for (size,) in sizes), default=0)
        if count >= most:
            break
    if not batches:
        raise without_samples(0, 0, "", np.array([]))
    try:
        return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *batches)
    except (ValueError, TypeError) as error:
        one_shape = remedy("as_arrays", how="batches of one shape")
        evidence = f"the batches do not go together: {said(error)}"
        raise refused("wrong_input", evidence, "Samples of several shapes", one_shape) from error
