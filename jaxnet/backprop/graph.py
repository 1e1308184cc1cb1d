"""The computational graph of a jaxpr: compiled functions opened, operations grouped by their scopes."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core


class Variable:
    """A value of the graph: an argument, or what an operation gives. Equal to nothing but itself."""

    def __init__(self, struct: Any):
        self.shape, self.dtype = struct.shape, struct.dtype

    @property
    def continuous(self) -> bool:
        """Whether it can have an adjoint, which integers, bools and keys cannot."""
        return jnp.issubdtype(self.dtype, jnp.inexact)


@dataclass(frozen=True, eq=False)
class Constant:
    """A number written in the function."""

    value: Any


class Operation(NamedTuple):
    """One equation of the jaxpr.

    Attributes:
      name: what it does.
      inputs: in the order in which the function wrote them, perhaps one of them twice.
      reads: the distinct ones, which ``run`` takes.
      outputs: what ``run`` returns, a list.
      scopes: of `jax.named_scope`, outermost first; a scan is one too.
      run: computes the outputs, custom derivatives included.
    """

    name: str
    inputs: tuple[Variable | Constant, ...]
    reads: tuple[Variable | Constant, ...]
    outputs: tuple[Variable, ...]
    scopes: tuple[str, ...]
    run: Callable[..., list[Any]]


class Group(NamedTuple):
    """What is shown as one: an operation, or a run of them in one scope.

    Attributes:
      path: of the scope, as ``open`` takes it; None for an operation on its own.
      kind: what the scope holds, the name of a layer for example.
      operations: in the order of computation.
      inputs: what they read from outside, in order.
      outputs: what is read outside.
    """

    path: str | None
    kind: str
    operations: tuple[Operation, ...]
    inputs: tuple[Variable | Constant, ...]
    outputs: tuple[Variable, ...]


def operations(
    jaxpr: core.ClosedJaxpr, arguments: tuple[Variable, ...], constants: tuple[Variable, ...], opened: Collection[str]
) -> tuple[list[Operation], Variable | Constant]:
    """The operations that the jaxpr's first output needs, in order, and that output."""
    found: list[Operation] = []
    scans: Counter[str] = Counter()

    def inline(jaxpr, constants, inputs, scopes) -> list[Variable | Constant]:
        values = dict(zip(jaxpr.constvars, constants, strict=True))
        values |= zip(jaxpr.invars, inputs, strict=True)

        def read(atom):
            return Constant(atom.val) if isinstance(atom, core.Literal) else values[atom]

        for equation in jaxpr.eqns:
            place = (*scopes, *_scopes(equation))
            given = tuple(read(atom) for atom in equation.invars)
            inner = None
            if equation.primitive.name == "scan":
                here = path((*place, "scan"))
                scans[here] += 1
                label = "scan" if scans[here] == 1 else f"scan#{scans[here]}"
                if path((*place, label)) in opened and equation.params["length"]:
                    inner = _unrolled(equation, label)
                else:
                    place = (*place, f"{label} scan")
            elif equation.primitive.name in ("jit", "pjit", "closed_call"):
                inner = equation.params["jaxpr"]
            if inner is not None:
                outputs = inline(inner.jaxpr, map(Constant, inner.consts), given, place)
            else:
                outputs = [Variable(var.aval) for var in equation.outvars]
                variables = tuple(dict.fromkeys(a for a in equation.invars if not isinstance(a, core.Literal)))
                reads, run = tuple(map(read, variables)), _runner(equation, variables)
                found.append(Operation(_name(equation), given, reads, tuple(outputs), place, run))
            values |= zip(equation.outvars, outputs, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    output = inline(jaxpr.jaxpr, constants, arguments, ())[0]
    return _needed(found, output), output


def path(scopes: tuple[str, ...]) -> str:
    """The labels of scopes, which end at the first space, joined."""
    return "/".join(scope.partition(" ")[0] for scope in scopes)


def groups(operations: list[Operation], output: Any, opened: Collection[str]) -> list[Group]:
    """Puts neighbours that share a closed scope together; being neighbours, they can be computed as one."""

    def closed(indexed):
        index, operation = indexed
        for depth in range(1, len(operation.scopes) + 1):
            if path(operation.scopes[:depth]) not in opened:
                return operation.scopes[:depth]
        return index

    runs = [(key, [operation for _, operation in run]) for key, run in itertools.groupby(enumerate(operations), closed)]
    last_use: dict[Any, int] = {}
    for i, (_, run) in enumerate(runs):
        last_use |= dict.fromkeys((v for operation in run for v in operation.reads if isinstance(v, Variable)), i)
    last_use[output] = len(runs)
    result = []
    for i, (key, run) in enumerate(runs):
        scopes = key if isinstance(key, tuple) else None
        made = {v for operation in run for v in operation.outputs}
        reads = [v for operation in run for v in operation.inputs if v not in made] if scopes else run[0].inputs
        if scopes:  # numbers written inside are its own affair
            reads = dict.fromkeys(v for v in reads if isinstance(v, Variable))
        outputs = tuple(v for operation in run for v in operation.outputs if last_use.get(v, -1) > i)
        kind = (scopes[-1].partition(" ")[2] or f"{len(run)} operations") if scopes else run[0].name
        result.append(Group(path(scopes) if scopes else None, kind, tuple(run), tuple(reads), outputs))
    return result


def scopes_of(operations: list[Operation]) -> Iterator[tuple[str, str]]:
    """Path and kind of every scope that operations were traced in."""
    for operation in operations:
        for depth in range(1, len(operation.scopes) + 1):
            yield path(operation.scopes[:depth]), operation.scopes[depth - 1].partition(" ")[2]


def _needed(operations: list[Operation], output: Any) -> list[Operation]:
    needed, kept = {output}, []
    for operation in reversed(operations):
        if not needed.isdisjoint(operation.outputs):
            needed.update(operation.reads)
            kept.append(operation)
    return kept[::-1]


def _scopes(equation: core.JaxprEqn) -> Iterator[str]:
    """The scopes around an equation, whatever transformed them: of ``vmap(chain[0] dense)`` what is inside."""
    for scope in str(equation.source_info.name_stack).split("/"):
        while match := re.fullmatch(r"(?:jvp|transpose|vmap)\((.*)\)", scope):
            scope = match[1]
        if scope:
            yield scope


def _name(equation: core.JaxprEqn) -> str:
    name, params = equation.primitive.name, equation.params
    if name == "integer_pow":
        return f"integer_pow {params['y']}"
    if name in ("custom_jvp_call", "custom_vjp_call"):
        function = getattr(params["call_jaxpr"].jaxpr.debug_info, "func_src_info", None)
        return (function or name).split()[0]
    return {"remat2": "checkpoint", "while": "while_loop"}.get(name, name)


def _runner(equation: core.JaxprEqn, variables: tuple[Any, ...]) -> Callable[..., list[Any]]:
    about = core.DebugInfo("backprop", equation.primitive.name, None, None)
    jaxpr = core.Jaxpr((), variables, equation.outvars, [equation], equation.effects, about)
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))


def _unrolled(equation: core.JaxprEqn, label: str) -> core.ClosedJaxpr:
    """A scan as its steps, one after the other."""
    body, length = equation.params["jaxpr"], equation.params["length"]
    order = range(length)[::-1] if equation.params["reverse"] else range(length)

    def stacked(outside, inside):  # by their shapes, since what tells them apart in the params differs between versions
        return sum(a.aval.shape != b.aval.shape for a, b in zip(outside, inside, strict=True))

    split = len(equation.invars) - stacked(equation.invars, body.jaxpr.invars)
    carried = len(equation.outvars) - stacked(equation.outvars, body.jaxpr.outvars)

    def steps(*inputs):
        constants, carry, slices = inputs[: split - carried], inputs[split - carried : split], inputs[split:]
        rows: list[Any] = [()] * length
        for i in order:
            with jax.named_scope(f"{label}[{i}] step"):
                of_step = [lax.index_in_dim(array, i, keepdims=False) for array in slices]
                outputs = core.jaxpr_as_fun(body)(*constants, *carry, *of_step)
            carry, rows[i] = outputs[:carried], outputs[carried:]
        return [*carry, *map(jnp.stack, zip(*rows, strict=True))]

    structs = [Variable(a.aval) for a in equation.invars]
    return jax.make_jaxpr(steps)(*(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in structs))
