"""The two passes over a graph: values forward, adjoints backward by the chain rule, eq. 4.23."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.backprop.graph import Constant, Operation, Variable
from jaxnet.errors import ConfigError

Values = dict[Any, Any]


def passes(
    operations: list[Operation],
    output: Variable | Constant,
    known: Values,
    differentiated: set[Variable],
    name_of: Callable[[Operation], str],
) -> tuple[Values, Values]:
    """Returns the value of every variable, and the adjoint of every one that leads to the output.

    The adjoint of v is the derivative of the output with respect to v: the sum, over the operations that read v, of
    what each pulls back from the adjoints of its outputs.

    Args:
      operations: in the order of computation.
      output: a scalar.
      known: the values of arguments and constants.
      differentiated: the arguments that get adjoints, and with them what is computed from them.
      name_of: what an error calls an operation.
    """
    values, active = dict(known), set(differentiated)
    pulls = []
    for operation in operations:
        given = [v.value if isinstance(v, Constant) else values[v] for v in operation.reads]
        sources = [i for i, v in enumerate(operation.reads) if v in active]
        targets = [i for i, v in enumerate(operation.outputs) if v.continuous]
        if not sources or not targets or operation.name == "stop_gradient":
            values |= zip(operation.outputs, operation.run(*given), strict=True)
            continue

        def of_sources(*moving, operation=operation, given=given, sources=sources, targets=targets):
            inputs = list(given)
            for i, value in zip(sources, moving, strict=True):
                inputs[i] = value
            outputs = operation.run(*inputs)
            return [outputs[i] for i in targets], outputs

        _, pull, outputs = _reversible(
            name_of, operation, lambda f=of_sources, g=given, s=sources: jax.vjp(f, *(g[i] for i in s), has_aux=True)
        )
        values |= zip(operation.outputs, outputs, strict=True)
        moving, made = [operation.reads[i] for i in sources], [operation.outputs[i] for i in targets]
        active.update(made)
        pulls.append((operation, pull, moving, made))

    adjoints: Values = {}
    if output in active:
        adjoints[output] = jnp.ones_like(values[output])
    for operation, pull, moving, made in reversed(pulls):
        if adjoints.keys().isdisjoint(made):
            continue
        of_outputs = [adjoints[v] if v in adjoints else jnp.zeros_like(values[v]) for v in made]
        for v, adjoint in zip(moving, _reversible(name_of, operation, lambda p=pull, c=of_outputs: p(c)), strict=True):
            adjoints[v] = adjoints[v] + adjoint if v in adjoints else adjoint
    return values, adjoints


def _reversible(name_of: Callable[[Operation], str], operation: Operation, step: Callable[[], Any]) -> Any:
    try:
        return step()
    except ValueError as error:
        if "lax.while_loop" not in str(error):
            raise
        raise ConfigError(
            f"{name_of(operation)} = {operation.name} holds a loop of unknown length, which cannot be passed "
            f"backward; use lax.scan, give lax.fori_loop a number of steps that is a Python int, or pass what "
            f"goes in through lax.stop_gradient"
        ) from error
