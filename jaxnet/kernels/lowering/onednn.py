"""oneDNN's convolutions and matrix products, which jaxlib carries for x86 processors and XLA executes by name.

XLA's CPU backend has the custom calls ``__onednn$convolution`` and ``__onednn$matmul``, which its own compiler writes
into programs only behind experimental flags. They are faster than what XLA generates in most cases of `cpu`, and on
processors with bfloat16 instructions the only fast convolution of 16 bits. Nothing here is certain to be there: so the
calls are tried once a process, against a sum in float64, and without them every form is XLA's own.
"""

import contextlib
import functools
import json
import os
import platform
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.kernels.geometry import Geometry

SWITCH = "JAXNET_ONEDNN"
"""The environment variable that turns the calls off, by 0, or on, by 1, with a JAX that they were not tried with or
where programs are kept in files."""

_TRIED = (10, 12)
"""The minor versions of jaxlib 0 that were tried, first and last: another's calls may take another description, and
XLA ends the process, rather than raise an error, at one that it cannot read."""

_HERE = threading.local()
_LOCK = threading.Lock()


@contextlib.contextmanager
def lowering(context: Any) -> Iterator[None]:
    """While a program is lowered: whether its operations may be these calls.

    A program that is exported may run elsewhere, the partitioner cannot split a call, and JAX cannot write a program
    with one into its persistent cache (it warns, and compiles it again in every process): there they may not. Within
    `shard_map` over all axes nothing is left to split.
    """
    module = context.module_context
    axes = module.axis_context
    alone = getattr(axes, "num_devices", None) == 1
    if (mesh := getattr(axes, "mesh", None)) is not None:
        alone = set(axes.manual_axes) == set(mesh.axis_names)
    kept = _in_files() or module.lowering_parameters.for_export
    with _allowed(alone and not kept and not getattr(_HERE, "portable", False)):
        yield


def _in_files() -> bool:
    """Whether JAX keeps compiled programs in files."""
    config: Any = jax.config
    cache = config.jax_enable_compilation_cache and config.jax_compilation_cache_dir
    return bool(cache) and os.environ.get(SWITCH) != "1"


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Programs that are lowered meanwhile have no calls: their text is the same on every machine, their cost known.

    One that was lowered before, of the same function object, is JAX's to give again: pass a new one.
    """
    before = getattr(_HERE, "portable", False)
    _HERE.portable = True
    try:
        yield
    finally:
        _HERE.portable = before


@contextlib.contextmanager
def _allowed(value: bool) -> Iterator[None]:
    before = getattr(_HERE, "allowed", False)
    _HERE.allowed = value
    try:
        yield
    finally:
        _HERE.allowed = before


def likely(dtype: Any) -> bool:
    """Whether a program that is traced now, for this process's devices, may come to have products for a dtype."""
    name = jnp.dtype(dtype).name
    known = not getattr(_HERE, "portable", False) and not _in_files() and _is_known(name) and _multiplies(name)
    return known and jax.default_backend() == "cpu"


def ready(dtype: Any) -> bool:
    """Whether the program being lowered may use the calls with arrays of a dtype, and they are fast and right."""
    return getattr(_HERE, "allowed", False) and _works(jnp.dtype(dtype).name)


def multiplies(dtype: Any) -> bool:
    """Whether that is so of the matrix product as well, and of convolutions in groups."""
    return ready(dtype) and _multiplies(jnp.dtype(dtype).name)


def _works(dtype: str) -> bool:
    with _LOCK:
        return _tried(dtype)


def _is_known(dtype: str) -> bool:
    """Whether jaxlib and the processor are such as have the calls, and nobody has turned them off."""
    switch = os.environ.get(SWITCH, "")
    known = _TRIED[0] <= _minor_version() <= _TRIED[1]
    return switch != "0" and (known or switch == "1") and _convolves(dtype)


@functools.cache
def _tried(dtype: str) -> bool:
    if not _is_known(dtype):
        return False
    found: list[bool] = []

    def probe():
        with contextlib.suppress(Exception):  # whatever another jaxlib says in place of the call
            found.append(_is_right(dtype))

    thread = threading.Thread(target=probe)  # what the user's thread is in, such as a mesh, is not the probe's
    thread.start()
    thread.join()
    return found == [True]


def _minor_version() -> int:
    major, minor, *_ = jax.lib.__version__.split(".")  # pyright: ignore[reportPrivateImportUsage]
    return int(minor) if major == "0" else -1


_CONVOLVES = {"float32": {"avx2", "avx512f"}, "bfloat16": {"avx512_bf16", "amx_bf16"}}
_MULTIPLIES = {"float32": {"avx512f"}, "bfloat16": {"avx512_bf16", "amx_bf16"}}
"""By dtype, what makes the calls faster than XLA's own forms: one of these instruction sets of the processor. Without
AVX-512 the oneDNN of jaxlib 0.10 has no fast matrix product, and convolutions in groups gain nothing."""


def _convolves(dtype: str) -> bool:
    return bool(_CONVOLVES.get(dtype, set()) & _instructions())


def _multiplies(dtype: str) -> bool:
    return bool(_MULTIPLIES.get(dtype, set()) & _instructions())


@functools.cache
def _instructions() -> frozenset[str]:
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
    return frozenset()


def _is_right(dtype: str) -> bool:
    """Whether the calls give what a sum in float64 does, on a case with strides, dilation, padding and groups."""
    geometry = Geometry((11,), (3,), (5,), (2,), (2,), (2,), 2)
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((1, 2, 11, 32), (1, 3, 16, 32)))
    padded = np.pad(x[0], [(0, 0), geometry.padding[0], (0, 0)]).reshape(2, -1, 2, 16)
    windows = np.stack([padded[:, 2 * k : 2 * k + 9 : 2] for k in range(3)])
    y = np.einsum("kbjgc,kcgo->bjgo", windows, w[0].reshape(3, 16, 2, 16)).reshape(1, 2, 5, 32)
    tried: dict[str, Any] = {"convolution": (lambda x, w: convolution(x, w, geometry), (x, w), y)}
    if _multiplies(dtype):  # as each slot of a product is called, of matrices and of pairs of them
        a, b = x[0, 0], w[0, 0, :11]
        pairs = np.stack([a, b]), np.stack([b, a])
        tried["product"] = (functools.partial(product, transpose_a=True), (a, b), a.T @ b)
        tried["transposed"] = (functools.partial(product, transpose_b=True), (a, b), a @ b.T)
        tried["pairs"] = (functools.partial(product, transpose_a=True), pairs, pairs[0].swapaxes(1, 2) @ pairs[1])
    device = jax.local_devices(backend="cpu")[0]
    with jax.disable_jit(False), jax.transfer_guard("allow"), jax.default_device(device):
        for function, operands, expected in tried.values():
            arrays = [jax.device_put(np.asarray(v, jnp.dtype(dtype)), device) for v in operands]
            found = np.asarray(jax.jit(function)(*arrays))
            if not np.array_equal(found.astype(np.float64), expected.astype(jnp.dtype(dtype)).astype(np.float64)):
                return False  # sums of small integers, exact in whatever order, rounded once
    return True


def convolution(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """The form solved for y, one member: x ``(1, B, *L, C)``, w ``(1, *K, C / g, O)``."""
    ndim = geometry.ndim
    x = _cropped(x, geometry)
    spatial = [str(axis) for axis in range(1, ndim + 1)]
    layout = {"data": {"batch_dim": "0", "feature_dim": str(ndim + 1), "spatial_dims": spatial}, "dims": "0"}
    kernel = {
        "input_feature_dim": str(ndim),
        "output_feature_dim": str(ndim + 1),
        "shape": [str(n) for n in w.shape[1:]],
        "spatial_dims": [str(axis) for axis in range(ndim)],
    }
    window = {
        "pad_left": [str(max(0, before)) for before in geometry.before],
        "pad_right": [str(max(0, after)) for after in geometry.after],
        "size": [],
        "strides": [str(n) for n in geometry.strides],
        "window_dilations": [str(n) for n in geometry.dilation],
    }
    config = {
        "dims": str(ndim + 2),
        "feature_groups": str(geometry.groups),
        "input": layout,
        "output": layout,
        "kernel": {"dims": "0", "filter": kernel},
        "window": window,
    }
    shape = (x.shape[1], *geometry.outputs, w.shape[-1])
    return _call("convolution", "onednn_conv_config", config, shape, x[0], w[0])[None]


def _cropped(x: jax.Array, geometry: Geometry) -> jax.Array:
    """Without the inputs before and after all windows, of which oneDNN passes over fewer than a stride at the end."""
    for axis, (before, after) in enumerate(geometry.padding):
        end = x.shape[axis + 2] + (after if -after >= geometry.strides[axis] else 0)
        x = jax.lax.slice_in_dim(x, max(0, -before), end, axis=axis + 2)
    return x


def product(a: jax.Array, b: jax.Array, *, transpose_a: bool = False, transpose_b: bool = False) -> jax.Array:
    """The product of two matrices, each transposed first where that is asked for; or of as many pairs of them."""
    tensor = {"tensor": {"dimensions": [str(axis + 1) for axis in range(a.ndim)]}}
    config = {
        "lhs": tensor,
        "rhs": tensor,
        "result": tensor,
        "transpose_a": transpose_a,
        "transpose_b": transpose_b,
    }
    shape = (*a.shape[:-2], a.shape[-1 if transpose_a else -2], b.shape[-2 if transpose_b else -1])
    return _call("matmul", "onednn_matmul_config", config, shape, a, b)


def _call(name: str, field: str, config: dict[str, Any], shape: tuple[int, ...], *operands: jax.Array) -> jax.Array:
    plain = {"bias_broadcast": False, "user_scratchpad": False, "weights_prepacked": False}
    description = {field: {**config, "optimization_config": plain}, "outer_dimension_partitions": []}
    call = jax.ffi.ffi_call(
        f"__onednn${name}",
        jax.ShapeDtypeStruct(shape, operands[0].dtype),
        custom_call_api_version=2,
        legacy_backend_config=json.dumps(description),
    )
    return call(*operands)
