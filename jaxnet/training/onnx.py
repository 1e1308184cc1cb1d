"""A trained network as an ONNX model, which runs where there is no JAX."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _optional as optional
from jaxnet.errors import ConfigError, JaxnetError, ShapeError, named
from jaxnet.kernels.inlined import inlined
from jaxnet.layers.layer import Layer, Params, State, as_layer, ran
from jaxnet.training import _atomic
from jaxnet.training.state import refuse_exchanged

LARGEST = 2**31 - 2**20
"""Bytes of weights: a message of Protocol Buffers, which a model is, has at most 2 GiB."""


@named("export_onnx")
def export_onnx(
    net: Layer, params: Params, state: State, x: Any, *, path: str | os.PathLike[str] | None = None
) -> bytes:
    """Translates a network's evaluation, weights included, to ONNX, for any batch size.

    The model is the function x -> y of ``net.apply(params, state, x, train=False)``. jax2onnx translates JAX's
    operations one by one; convolutions, which are an operation of our own, are written as JAX's first. Then onnxruntime
    runs the model for two batch sizes, and it is refused unless it computes what the network computes.

    Args:
      net: the network.
      params: its parameters.
      state: its state.
      x: an example input (batch, ...), on which the model is tried, or its `jax.ShapeDtypeStruct` (then it is tried on
        noise, or on zeros of integers); all sizes but the batch's are fixed.
      path: a file to write, too; it is complete or not there, whatever interrupts the writing.

    Returns:
      The model, as ``onnxruntime.InferenceSession`` takes it: its one input has the shape and dtype of x, its outputs
      are the leaves of y.

    Raises:
      ConfigError: an operation that jax2onnx does not translate or onnxruntime does not have, a model that computes
        something else, weights of 2 GiB, or a network that needs the batch size as a number in Python.
      ShapeError: x does not fit the network, is no one array, or has no batch axis.
      DTypeError: x is no array.
      DependencyError: jax2onnx is not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, training
      >>> net = layers.chain(layers.dense(8), jnp.tanh, layers.dense(3))
      >>> params, state = net.init(0, jnp.ones((1, 4)))
      >>> model = training.export_onnx(net, params, state, jnp.ones((1, 4)))  # doctest: +SKIP
      >>> session = onnxruntime.InferenceSession(model)  # doctest: +SKIP
      >>> (y,) = session.run(None, {session.get_inputs()[0].name: np.ones((5, 4), np.float32)})  # doctest: +SKIP
    """
    jax2onnx = optional.load("training.export_onnx", "jax2onnx")
    from jax import export as jax_export
    from jax.extend.core import jaxpr_as_fun

    if path is not None:  # before the work, not after it
        path = checks.path("path", path)
        _atomic.try_file(path)
    refuse_exchanged(params, x)
    struct = checks.structs(x)
    if not isinstance(struct, jax.ShapeDtypeStruct) or not struct.shape:
        raise ShapeError(f"x must be one array with the axes (batch, ...), got {checks.describe(struct)}")
    params, state = jax.tree.map(_on_one_device, (params, state))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((params, state)))
    if size > LARGEST:
        raise ConfigError(f"params and state have {size} bytes, an ONNX model at most 2 GiB; take training.export")
    net = as_layer(net, "net")

    def evaluate(x):
        return ran(net.apply(params, state, x, train=False))[0]

    # What is wrong with the network, its params or x shows with a batch size that is a number.
    jax.eval_shape(evaluate, jax.ShapeDtypeStruct((2, *struct.shape[1:]), struct.dtype))
    (size,) = jax_export.symbolic_shape("batch")
    batch = jax.ShapeDtypeStruct((size, *struct.shape[1:]), struct.dtype)
    fault = f"the network {net.name} cannot be written for every batch size"
    try:
        written = jaxpr_as_fun(jax.make_jaxpr(inlined(evaluate))(batch))
        fault = f"jax2onnx does not translate the network {net.name}"
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), _silent("onnx_ir"):
            # jax2onnx relies on both promotions; of shapes that onnx_ir does not know yet it warns, and then finds them
            proto = jax2onnx.to_onnx(lambda x: written(x), [batch], enable_double_precision=struct.dtype == np.float64)
            model = proto.SerializeToString()
        fault = f"onnxruntime does not run the network {net.name} as jax2onnx translates it"
        run = jax.jit(net.apply, static_argnames="train")
        _try(model, lambda x: run(params, state, x, train=False)[0], _examples(x, struct))
    except JaxnetError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{fault}: {reason}; training.export has no such limits") from error
    if path is not None:
        _atomic.write(path, model)
    return model


@contextlib.contextmanager
def _silent(library: str) -> Iterator[None]:
    """Keeps a library's log to its errors."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(max(before, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(before)


def _on_one_device(leaf: Any) -> jax.Array:
    leaf = checks.array("params", leaf)
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.asarray(np.asarray(leaf))


def _examples(x: Any, struct: jax.ShapeDtypeStruct) -> list[np.ndarray]:
    """Two batches of other sizes."""
    if isinstance(x, jax.ShapeDtypeStruct) or 0 in struct.shape:
        floats = jnp.issubdtype(struct.dtype, jnp.floating)
        x = (
            np.random.default_rng(0).standard_normal((3, *struct.shape[1:]))
            if floats
            else np.zeros((3, *struct.shape[1:]))
        )
    return [np.resize(np.asarray(x), (size, *struct.shape[1:])).astype(struct.dtype) for size in (2, 3)]


def _try(model: bytes, evaluate: Callable[[Any], Any], examples: list[np.ndarray]) -> None:
    """Raises unless the runtime computes the same."""
    import onnxruntime  # which jax2onnx needs, too

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is an exception
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for x in examples:
        outputs = session.run(None, {session.get_inputs()[0].name: x})
        for y, wanted in zip(outputs, map(np.asarray, jax.tree.leaves(evaluate(x))), strict=True):
            if y.shape != wanted.shape:
                raise ValueError(f"it returns the shape {y.shape}, not {wanted.shape}")
            y, digits = y.astype(np.float64), 1e-3 if wanted.dtype.itemsize > 2 else 3e-2
            wanted = wanted.astype(np.float64)
            largest = np.max(np.abs(wanted), initial=1, where=np.isfinite(wanted))
            if not np.allclose(y, wanted, rtol=0, atol=digits * largest, equal_nan=True):
                raise ValueError(
                    f"its outputs differ by {np.max(np.abs(y - wanted)):.2g}, where the largest is {largest:.2g}"
                )
