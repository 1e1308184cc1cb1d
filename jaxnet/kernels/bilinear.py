"""How the primitives are made that solve a trilinear form for its slots: each bilinear, and the others' transpose."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import ShapedArray
from jax.interpreters import ad, batching, mlir

from jaxnet.kernels.lowering import onednn
from jaxnet.kernels.slots import OPERANDS, Slot

NO_MESH = jax.sharding.AbstractMesh((), ())


def make(
    name: str,
    slot: Slot,
    others: Callable[[Slot], Any],
    *,
    abstract: Callable[..., Any],
    batch: Callable[..., Any],
    multiply_adds: Callable[..., int],
    solvers: dict[str | None, Callable[..., jax.Array]],
) -> Any:
    """The primitive of a slot.

    Args:
      name: the primitive's.
      slot: what it solves for.
      others: gives the primitive of a slot, this one or another.
      abstract: ``(a, b, **params) -> type of the result``. The parameters are static; one is ``precision``.
      batch: its batching rule.
      multiply_adds: their number, of the types of operands and result.
      solvers: ``(a, b, **params) -> result`` for a platform, of arrays; None is for all others.
    """
    from jax.extend.core import Primitive  # which imports Pallas: not before one is asked for

    primitive: Any = Primitive(name)

    @functools.partial(jax.jit, static_argnames=("geometry", "members", "precision"))
    def run(a, b, **params):
        return primitive.bind(a, b, **params)

    def outside_of_jit(*operands, **params):
        with jax.disable_jit(False):  # without jit there is nothing that could run the forms
            return run(*operands, **params)

    primitive.multiply_adds = multiply_adds
    primitive.def_impl(outside_of_jit)
    primitive.def_abstract_eval(abstract)
    ad.defbilinear(primitive, _transpose(slot, 0, others), _transpose(slot, 1, others))
    batching.primitive_batchers[primitive] = batch
    for platform, solve in solvers.items():
        mlir.register_lowering(primitive, _lowering(solve), platform=platform)
    return primitive


def _transpose(slot: Slot, operand: int, others: Callable[[Slot], Any]) -> Callable:
    """The rule for the cotangent of one operand: the form solved for that operand's slot."""
    one, other = OPERANDS[slot][operand], OPERANDS[slot][1 - operand]

    def rule(cotangent, a, b, **params):
        values = {slot: cotangent, other: (a, b)[1 - operand]}
        return others(one).bind(*(values[name] for name in OPERANDS[one]), **params)

    return rule


def _lowering(solve: Callable[..., jax.Array]) -> Callable:
    def traced(a, b, *, precision, **params):
        with jax.default_matmul_precision(precision), jax.sharding.use_abstract_mesh(NO_MESH):
            return solve(a, b, **params)

    lower = mlir.lower_fun(traced, multiple_results=False)

    def rule(context, *operands, **params):
        # How the arrays are spread over devices is settled in their types, and by XLA: here they are arrays.
        bare = [[ShapedArray(v.shape, v.dtype) for v in kinds] for kinds in (context.avals_in, context.avals_out)]
        with onednn.lowering(context):
            return lower(context.replace(avals_in=bare[0], avals_out=bare[1]), *operands, **params)

    return rule
