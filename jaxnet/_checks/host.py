"""Checks of NumPy's arrays: what JAX cannot hold, or would change without a word."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _words as words
from jaxnet._checks.warn import warn
from jaxnet.errors import DataError, DTypeError


def host_array(name: str, value: np.ndarray | np.generic, narrowed: dict[str, np.dtype] | None = None) -> np.ndarray:
    """``value`` in the dtype that JAX will give it, refusing what would change without a word.

    Args:
      narrowed: takes the names and dtypes of what is rounded to 32 bits, for one `warn_of_narrowed` later on; without
        it the warning comes at once.

    Raises:
      DTypeError: the dtype is no number (objects, strings), or is in the other byte order.
      DataError: 64-bit integers that do not fit the 32 bits JAX keeps, or a mask that would be lost.

    Warns:
      UserWarning: float64 values while 64-bit types are disabled; JAX would round them to float32.
    """
    value = unmasked(name, value)
    dtype = value.dtype
    if not dtype.isnative:
        raise DTypeError(
            f"{name} has byte order {dtype.str!r}, which JAX cannot read; "
            f"convert with .astype({dtype.newbyteorder('=').name!r})"
        )
    if not is_numeric(dtype):
        cure = "build one rectangular numeric array, for example numpy.stack(rows).astype('float32')"
        if dtype.kind in "UST" or (dtype.kind == "O" and all(isinstance(entry, str) for entry in np.ravel(value))):
            cure = "number the classes, data.classes(names).encode(names)"
        cure = words.of_no_numbers(name, value, f"{name}.astype('float32')", f"{name}.astype('int32')") or cure
        raise DTypeError(f"{name} has dtype {dtype}, which is no number; {cure}")
    canonical = jax.dtypes.canonicalize_dtype(dtype)
    if canonical == dtype:
        return np.asarray(value)
    if dtype.kind in "iu":
        limits = np.iinfo(canonical)
        if value.size and (value.min() < limits.min or value.max() > limits.max):
            raise DataError(
                f"{name} holds {dtype} values up to {value.max()}, which do not fit {canonical}; "
                f"enable 64-bit types with jax.config.update('jax_enable_x64', True)"
            )
    elif narrowed is None:
        warn_of_narrowed({name: dtype})
    else:
        narrowed[name] = dtype
    return np.asarray(value).astype(canonical)


def warn_of_narrowed(narrowed: dict[str, np.dtype]) -> None:
    """Warns once of all arrays that are rounded to JAX's 32 bits."""
    if not narrowed:
        return
    dtypes = sorted({str(dtype) for dtype in narrowed.values()})
    canonical = " and ".join(sorted({jax.dtypes.canonicalize_dtype(dtype).name for dtype in narrowed.values()}))
    which = f"{' and '.join(narrowed)} {'is' if len(narrowed) == 1 else 'are'} {' and '.join(dtypes)}"
    warn(
        f"{which}, and JAX computes in {canonical} here; convert it yourself with "
        f".astype({canonical!r}), or enable 64-bit types with jax.config.update('jax_enable_x64', True)"
    )


def unmasked(name: str, value: np.ndarray | np.generic) -> np.ndarray:
    """``value`` as a plain NumPy array; one with masked entries is refused, since nothing here would see the mask."""
    if np.ma.is_masked(value):
        raise DataError(
            f"{name} is a masked array with {np.ma.count_masked(value)} of {value.size} entries masked, and the mask "
            f"would be lost; fill them with .filled(value), or drop those samples"
        )
    return np.asarray(value)


def is_numeric(dtype: np.dtype) -> bool:
    """Whether JAX can compute with ``dtype``: numbers in this machine's byte order, bools and bfloat16 among them."""
    extended = jnp.issubdtype(dtype, np.inexact) or jnp.issubdtype(dtype, np.integer)  # bfloat16's kind is V in NumPy
    return dtype.isnative and (dtype.kind in "biufc" or extended)
