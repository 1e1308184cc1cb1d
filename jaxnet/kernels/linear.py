"""Functions that are linear in some of their arguments, with a transpose of their own, and smooth in the others.

JAX's own `jax.custom_derivatives.linear_call` cannot be differentiated by what it is not linear in, and a
`jax.custom_vjp` has no forward mode. This primitive is for a derivative rule that says both directions itself:
its transpose is the same primitive the other way round, so that derivatives of every order and mode stay defined.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.interpreters import ad, batching, mlir

from jaxnet._mesh import spread


class Linear(NamedTuple):
    """A function of ``(residuals, operands)``, two tuples of arrays, that is linear in the operands.

    Attributes:
      apply: computes the tuple of outputs.
      transpose: ``(residuals, cotangents of the outputs) -> cotangents of the operands``.
      plain: computes what ``apply`` does in a way that JAX can differentiate by all arguments.
    """

    apply: Callable[[tuple, tuple], tuple]
    transpose: Callable[[tuple, tuple], tuple]
    plain: Callable[[tuple, tuple], tuple]

    def __call__(self, residuals: tuple, operands: tuple) -> tuple:
        """The outputs, differentiable in every mode and order."""
        return tuple(_bind(self, len(residuals), [*residuals, *operands]))


def _bind(f: Linear, count: int, arrays: Any) -> list:
    arrays = [spread(a, *arrays) for a in arrays]
    jaxpr = jax.make_jaxpr(lambda *arrays: f.apply(tuple(arrays[:count]), tuple(arrays[count:])))(*arrays)
    return _primitive().bind(*arrays, f=f, count=count, jaxpr=jaxpr)


@functools.cache
def _primitive() -> Any:
    from jax.extend.core import Primitive, jaxpr_as_fun  # which imports Pallas: not before it is asked for

    primitive: Any = Primitive("jaxnet_linear")
    primitive.multiple_results = True

    def run(*arrays, f, count, jaxpr):
        return jaxpr_as_fun(jaxpr)(*arrays)

    primitive.def_impl(run)
    primitive.def_abstract_eval(lambda *arrays, f, count, jaxpr: jaxpr.out_avals)
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=True))
    ad.primitive_jvps[primitive] = _jvp
    ad.primitive_transposes[primitive] = _transpose
    batching.primitive_batchers[primitive] = _batch
    return primitive


def _jvp(primals, tangents, *, f: Linear, count: int, jaxpr):
    out = _primitive().bind(*primals, f=f, count=count, jaxpr=jaxpr)
    parts = []
    if any(type(t) is not ad.Zero for t in tangents[count:]):
        parts.append(_bind(f, count, [*primals[:count], *map(ad.instantiate_zeros, tangents[count:])]))
    moving = [i for i, t in enumerate(tangents[:count]) if type(t) is not ad.Zero]
    if moving:

        def by_residuals(*values):
            arrays = [*primals]
            for i, value in zip(moving, values, strict=True):
                arrays[i] = value
            return list(f.plain(tuple(arrays[:count]), tuple(arrays[count:])))

        parts.append(jax.jvp(by_residuals, [primals[i] for i in moving], [tangents[i] for i in moving])[1])
    total = [sum(terms[1:], terms[0]) for terms in zip(*parts, strict=True)]
    return out, total or [ad.Zero(jax.typeof(y)) for y in out]


def _transpose(cotangents, *arrays, f: Linear, count: int, jaxpr):
    residuals = arrays[:count]
    like = tuple(a.aval for a in arrays[count:])

    def plain(residuals, cotangents):
        return jax.linear_transpose(lambda *operands: f.plain(residuals, operands), *like)(cotangents)

    back = Linear(f.transpose, f.apply, plain)
    return [None] * count + _bind(back, count, [*residuals, *map(ad.instantiate_zeros, cotangents)])


def _batch(arrays, dims, *, f: Linear, count: int, jaxpr):
    size = next(a.shape[d] for a, d in zip(arrays, dims, strict=True) if d is not None)
    arrays = [a if d is None else jax.numpy.moveaxis(a, d, 0) for a, d in zip(arrays, dims, strict=True)]
    # An operand has a cotangent a member, so it must be mapped; a residual need not be.
    arrays[count:] = [
        jax.numpy.broadcast_to(a[None], (size, *a.shape)) if d is None else a
        for a, d in zip(arrays[count:], dims[count:], strict=True)
    ]
    axes = (tuple(None if d is None else 0 for d in dims[:count]), 0)
    out = _bind(Linear(*(jax.vmap(function, axes) for function in f)), count, arrays)
    return out, [0] * len(out)
