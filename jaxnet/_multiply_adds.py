"""How many multiply-adds are in a function, from its trace.

JAX's own primitives are counted here. One of ours states its cost itself, in its attribute ``multiply_adds``: a
function of the types of its operands and results.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def multiply_adds(function: Callable[..., Any], *args: Any) -> int:
    """Returns the multiply-adds in the matrix products and convolutions of ``function(*args)``.

    The function is traced, not run: the arguments may be `jax.ShapeDtypeStruct`. Scans count once per
    iteration; of a conditional the dearest branch counts, of a ``while`` loop one iteration, since nobody knows
    how many there will be.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import sizes
      >>> x = jax.ShapeDtypeStruct((8, 64), jnp.float32)
      >>> w = jax.ShapeDtypeStruct((64, 10), jnp.float32)
      >>> sizes.multiply_adds(jnp.dot, x, w)
      5120
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        left, kernel = (v.aval.shape for v in equation.invars[:2])
        out = equation.outvars[0].aval.shape
        taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])
        positions = 1
        for i, step in enumerate(params["lhs_dilation"]):  # the zeros stuffed between values cost nothing
            positions *= left[numbers.lhs_spec[2 + i]] if step > 1 else out[numbers.out_spec[2 + i]]
        return out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * positions * taps
    if hasattr(equation.primitive, "multiply_adds"):
        return equation.primitive.multiply_adds(*(v.aval for v in (*equation.invars, *equation.outvars)))
    from jax.extend import core as jax_core  # which imports Pallas; nobody else needs it

    inner = [_count(j) for j in jax_core.jaxprs_in_params(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    return max(inner, default=0) if name == "cond" else sum(inner)
