"""Gradient clipping (section 4.6.3), which leaves a non-finite gradient visible."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.errors import DTypeError
from jaxnet.optimizers._arithmetic import promoted, scalar_like
from jaxnet.optimizers._hyperparameters import scalar
from jaxnet.optimizers._rule import door, stateless
from jaxnet.optimizers.base import Optimizer
from jaxnet.optimizers.vectors import Vector, each


@door
def clip_by_global_norm(max_norm: Any) -> Optimizer:
    r"""Shortens the whole gradient to a given Euclidean norm, if it is longer.

    .. math::
      g \leftarrow g \cdot \min\left(1, \frac{c}{\|g\|}\right), \qquad
      \|g\|^2 = \sum_{\text{leaves}} \sum |g|^2

    The norm is that of the finite entries. So an Inf or a NaN stays what and where it is, all other entries
    are clipped among themselves, and `skip_nonfinite` or a look at the gradient still finds the fault.
    (optax and PyTorch divide by a norm that is then Inf or NaN: everything else becomes 0, or NaN.) Squares are
    summed in at least float32, and finite gradients whose squares overflow are clipped like any other.

    Args:
      max_norm: c > 0, a float or a scalar array.

    Returns:
      An `Optimizer` with an `EmptyState`.

    Raises:
      ConfigError: a concrete ``max_norm`` makes no sense.

    Example:
      >>> import jax.numpy as jnp
      >>> clip = clip_by_global_norm(1.0)
      >>> clip.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, clip.init({}))[0]
      {'a': Array([0.6], dtype=float32), 'b': Array([0.8], dtype=float32)}
      >>> clip.update(jnp.array([3.0, jnp.inf, 4.0]), clip.init({}))[0]
      Array([0.6, inf, 0.8], dtype=float32)

    Source: Pascanu, Mikolov & Bengio, On the difficulty of training recurrent neural networks, arXiv 1211.5063.
    """
    max_norm = scalar("max_norm", max_norm, open_low=True, schedule=False)

    def shortened(gradients: Vector) -> Vector:
        if not gradients.leaves:
            return gradients
        norm, unit = _finite_norm(gradients.leaves)
        short = norm < scalar_like(max_norm, norm) * unit

        def clip(g):
            clipped = scalar_like(max_norm, g) * ((g * unit.astype(g.dtype)) / norm.astype(g.dtype))
            # Complex division makes a NaN of an Inf; real division by a finite norm leaves it alone.
            keep = short | ~jnp.isfinite(g) if jnp.iscomplexobj(g) else short
            return jnp.where(keep, g, clipped)

        return each(clip, gradients)

    return stateless(shortened)


@door
def clip_by_value(max_delta: Any) -> Optimizer:
    r"""Limits every entry of the gradient to an interval (`optax.clip`).

    .. math:: g \leftarrow \min(\max(g, -\delta), \delta)

    Finite entries only: an Inf or a NaN passes unchanged, so that it is found, not trained on.

    Args:
      max_delta: :math:`\delta > 0`, a float or a scalar array.

    Returns:
      An `Optimizer` with an `EmptyState`.

    Raises:
      ConfigError: a concrete ``max_delta`` makes no sense.
      DTypeError: a gradient is complex, where an interval has no meaning.

    Example:
      >>> import jax.numpy as jnp
      >>> clip = clip_by_value(0.5)
      >>> clip.update(jnp.array([0.1, -2.0, jnp.inf]), clip.init({}))[0]
      Array([ 0.1, -0.5,  inf], dtype=float32)

    Source: Mikolov, Statistical language models based on neural networks, 2012.
    """
    max_delta = scalar("max_delta", max_delta, open_low=True, schedule=False)

    def clip(g):
        if jnp.iscomplexobj(g):
            raise DTypeError("a complex gradient has no interval; use clip_by_global_norm")
        limit = scalar_like(max_delta, g)
        return jnp.where(jnp.isfinite(g), jnp.clip(g, -limit, limit), g)

    return stateless(lambda gradients: each(clip, gradients))


@jax.jit  # so that outside jit the cond is compiled once per tree, not at every call
def _finite_norm(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The norm of the finite entries in some unit, and that unit: (|u g|, u), with u = 1 wherever possible."""
    leaves = [x for x in leaves if x.size]

    def norm_of(leaves):
        total = jnp.zeros((), jnp.float32)
        for x in leaves:
            square = jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)
            total, square = promoted(total, jnp.sum(square))
            total = total + square
        return jnp.sqrt(total)

    norm = norm_of(leaves)

    def rescue():
        finite = [jnp.where(jnp.isfinite(x), x, jnp.zeros((), x.dtype)) for x in leaves]
        largest = jnp.zeros((), norm.dtype)
        for x in finite:
            for part in (x.real, x.imag) if jnp.iscomplexobj(x) else (x,):
                largest = jnp.maximum(largest, jnp.max(jnp.abs(part)).astype(norm.dtype))
        # A power of two that brings the largest entry to between 2 and 4; its square cannot overflow, and
        # the exponent is bounded so that neither the unit nor its products leave the normal range.
        unit = jnp.ldexp(jnp.ones((), norm.dtype), jnp.minimum(2 - jnp.frexp(largest)[1], 100))
        return norm_of([x * unit.astype(x.dtype) for x in finite]), unit

    return jax.lax.cond(jnp.isfinite(norm), lambda: (norm, jnp.ones((), norm.dtype)), rescue)
