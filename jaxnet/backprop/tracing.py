"""The forward and the backward pass of a function, recorded."""

import inspect
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet._tables import few
from jaxnet.backprop import graph, picture, text
from jaxnet.backprop.diagram import Diagram, Node
from jaxnet.backprop.passes import passes
from jaxnet.backprop.values import constant
from jaxnet.errors import ConfigError, DTypeError, ShapeError, named

_MORE = ", and {} more"


class Program(NamedTuple):
    """A function made ready: what `Trace` needs to be drawn again with other parts open."""

    name: str
    jaxpr: Any
    names: tuple[tuple[str, ...], ...]  # of each argument's arrays: the argument, and the keys that lead to it
    leaves: tuple[Any, ...]
    differentiated: tuple[int, ...]
    gradients_of: Callable[[dict[int, Any]], Any]


class Trace:
    """The computational graph that `trace` records of one evaluation; prints as a table, ``trace["v1"]`` is a `Node`.

    Attributes:
      value: of the function.
      gradients: as `jax.grad` gives them: of the argument that ``argnums`` names, or a tuple, one for each. None
        stands for an array of integers or keys.
      nodes: what was computed, in order. What the value does not need is left out.
      arguments: a `Node` for each array of the arguments.
    """

    def __init__(self, program: Program, opened: frozenset[str] = frozenset()):
        self._program, self._opened = program, opened
        leaves = tuple(graph.Variable(leaf) for leaf in program.leaves)
        constants = tuple(graph.Variable(value) for value in program.jaxpr.consts)
        steps, output = graph.operations(program.jaxpr, leaves, constants, opened)
        groups = graph.groups(steps, output, opened)
        self._kinds = dict(graph.scopes_of(steps))

        names: dict[Any, str] = {v: "".join(parts) for v, parts in zip(leaves, program.names, strict=True)}
        taken, labels = set(names.values()), {}

        def fresh(candidates):
            name = next(name for name in candidates if name not in taken)
            taken.add(name)
            return name

        for group in groups:
            if group.path is None:
                names |= {v: fresh(f"v{i}" for i in itertools.count(1)) for v in group.outputs}
            else:
                again = (f"{group.path}#{i}" for i in itertools.count(2))
                name, several = fresh(itertools.chain([group.path], again)), len(group.outputs) > 1
                names |= {v: name + f":{i}" * several for i, v in enumerate(group.outputs)}
            labels |= dict.fromkeys(map(id, group.operations), names[group.outputs[0]])

        shown = [v for group in groups for v in group.outputs]
        differentiated = [leaves[i] for i in program.differentiated]

        def run(values, captured):
            known = dict(zip((*leaves, *constants), (*values, *captured), strict=True))
            result, adjoints = passes(steps, output, known, set(differentiated), lambda step: labels[id(step)])
            adjoints = {v: jnp.zeros_like(known[v]) for v in differentiated} | adjoints  # 0 where nothing depends on it
            value = output.value if isinstance(output, graph.Constant) else result[output]
            return value, [result[v] for v in shown], [adjoints.get(v) for v in (*shown, *leaves)]

        self.value, values, adjoints = jax.jit(run)(program.leaves, program.jaxpr.consts)
        value_of, adjoint = dict(zip(shown, values, strict=True)), dict(zip((*shown, *leaves), adjoints, strict=True))
        self.gradients = program.gradients_of({i: adjoint[leaves[i]] for i in program.differentiated})
        words = names | {v: constant(value) for v, value in zip(constants, program.jaxpr.consts, strict=True)}
        self.nodes = tuple(
            Node(
                names[v],
                group.kind + f":{i}" * (group.path is None and len(group.operations[0].outputs) > 1),
                tuple(constant(v.value) if isinstance(v, graph.Constant) else words[v] for v in group.inputs),
                value_of[v],
                adjoint[v],
            )
            for group in groups
            for i, v in enumerate(group.outputs)
        )
        self.arguments = tuple(
            Node(names[v], "argument", (), value, adjoint[v]) for v, value in zip(leaves, program.leaves, strict=True)
        )
        title = f"{program.name}({', '.join(dict.fromkeys(parts[0] for parts in program.names))})"
        closed = self._kinds.keys() - opened
        self._diagram = Diagram(title, self.value, self.nodes, self.arguments, program.names, closed)

    @named("backprop")
    def __getitem__(self, name: str) -> Node:
        by_name = self._diagram.by_name
        if name not in by_name:
            raise ConfigError(f"there is no node {name!r}; there are {few(list(by_name), 12, _MORE)}")
        return by_name[name]

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"Trace({self._program.name}: {len(self.nodes)} nodes)"

    def table(self, rows: int | None = 40) -> str:
        """The graph as text: a line a node, then the gradients.

        Args:
          rows: how many lines of each at most; None for all.
        """
        return text.table(self._diagram, rows)

    def dot(self) -> str:
        """The graph in Graphviz' language: solid edges forward, dashed ones backward."""
        return text.dot(self._diagram)

    def draw(self, path: str | os.PathLike) -> Path:
        """Draws the graph: solid arrows forward, dashed ones backward; needs matplotlib.

        Args:
          path: of the picture; its extension says the format, .png, .svg or .pdf.

        Returns:
          The picture's path.

        Raises:
          ConfigError: too many nodes to be read.
        """
        with named("draw"):
            path = checks.path("path", path)
        with named("backprop"):
            return picture.draw(self._diagram, path)

    @named("backprop")
    def open(self, *paths: str) -> "Trace":
        """The same with some parts opened: layers, other named scopes, or a scan, which becomes its steps.

        Args:
          *paths: the names of nodes, for example "chain[2]", or of nodes inside, "chain[2]/residual.branch"; everything
            but scans unless given.

        Returns:
          Another `Trace`; the graph is computed again.

        Raises:
          ConfigError: no such part.

        Example:
          >>> import jax.numpy as jnp
          >>> from jaxnet import backprop, layers
          >>> net = layers.chain(layers.dense(2), jnp.tanh)
          >>> x = jnp.ones((1, 3))
          >>> params, state = net.init(0, x)
          >>> graph = backprop.trace(lambda p: net.apply(p, state, x, train=True)[0].sum(), params)
          >>> [node.name for node in graph.nodes]
          ['chain[0]', 'chain[1]', 'v1']
          >>> [node.name for node in graph.open("chain[0]").nodes]
          ['v1', 'v2', 'v3', 'chain[1]', 'v4']
        """
        if not paths:
            return Trace(self._program, self._opened | {p for p, kind in self._kinds.items() if kind != "scan"})
        for path in paths:
            if path not in self._kinds and path not in self._opened:
                can = few([p for p in self._kinds if p not in self._opened], 12, _MORE)
                raise ConfigError(f"{path!r} cannot be opened; {f'there are {can}' if can else 'nothing can'}")
        above = {"/".join(path.split("/")[:n]) for path in paths for n in range(1, path.count("/") + 2)}
        return Trace(self._program, self._opened | above)


@named("backprop")
def trace(
    f: Callable[..., Any], *args: Any, argnums: int | Sequence[int] | None = None, has_aux: bool = False
) -> Trace:
    """Records how backpropagation differentiates ``f`` at ``args``: every value and every adjoint.

    For each operation w = g(v, ...) of the graph, the backward pass adds to the adjoint of v (eq. 4.23)::

        df/dv  +=  df/dw  dw/dv

    A network's layers are one node each, and so is whatever else stands in a `jax.named_scope`; `Trace.open` opens
    them. Compiled functions are open, custom derivatives, scans, branches and checkpoints are one node.

    Args:
      f: a function of arrays, or pytrees of them, whose value is one floating-point number.
      *args: concrete values for its arguments.
      argnums: which arguments to differentiate by, as in `jax.grad`; every floating-point array unless given.
      has_aux: ``f`` returns (value, anything else), and the latter is not shown.

    Returns:
      A `Trace`.

    Raises:
      ShapeError: the value of ``f`` is no scalar.
      DTypeError: the value, or an argument to differentiate by, is not floating point.
      ConfigError: ``argnums`` names no argument, an argument is a traced value, or a loop of unknown length
        (`jax.lax.while_loop`) would have to be passed backward.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import backprop
      >>> print(backprop.trace(lambda w1, w2: w1 * jnp.sin(w2), 3.0, 0.0))
      <lambda>(w1, w2) = 0
      <BLANKLINE>
      node  operation  inputs  value  adjoint
      ----  ---------  ------  -----  -------
      v1    sin        w2          0        3
      v2    mul        w1, v1      0        1
      <BLANKLINE>
      argument  value  gradient
      --------  -----  --------
      w1            3         0
      w2            0         3

    Source: chapter 4.5, eq. 4.23 to 4.25, figure 4.8.
    """
    checks.function("f", f)
    checks.flag("has_aux", has_aux)
    names = _signature(f, args)
    flat, structure = jax.tree_util.tree_flatten_with_path(args)
    labels = tuple((names[path[0].idx], *(jax.tree_util.keystr((key,)) for key in path[1:])) for path, _ in flat)
    for label, (_, leaf) in zip(labels, flat, strict=True):
        _check_concrete("".join(label), leaf)
    leaves = tuple(checks.array("".join(label), leaf) for label, (_, leaf) in zip(labels, flat, strict=True))
    numbers = _argnums(argnums, len(args))
    differentiated = []
    for i, ((path, given), leaf) in enumerate(zip(flat, leaves, strict=True)):
        if path[0].idx not in numbers:
            continue
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            differentiated.append(i)
        elif argnums is not None or isinstance(given, int) or jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            hint = f"{given}.0" if type(given) is int else "a floating-point array"
            raise DTypeError(
                f"{''.join(labels[i])} has dtype {leaf.dtype}, and only floating-point numbers can be "
                f"differentiated by; pass {hint}, or name the arguments to differentiate by, as in argnums=(0, 1)"
            )
    if not differentiated:
        raise DTypeError(
            "no argument is a floating-point array, so there is nothing to differentiate by; "
            "pass what the function depends on as arguments, backprop.trace(f, w1, w2)"
        )
    jaxpr = jax.make_jaxpr(lambda *leaves: _scalar(f(*jax.tree.unflatten(structure, leaves)), has_aux))(*leaves)
    for value in jaxpr.consts:
        _check_concrete("a value that the function captured", value)

    def gradients_of(adjoints):
        trees = jax.tree.unflatten(structure, [adjoints.get(i) for i in range(len(leaves))])
        return trees[argnums] if isinstance(argnums, int) else tuple(trees[i] for i in numbers)

    return Trace(Program(_name(f), jaxpr, labels, leaves, tuple(differentiated), gradients_of))


def _scalar(y: Any, has_aux: bool) -> Any:
    """The number that the function returned."""
    if has_aux:
        if not isinstance(y, tuple) or len(y) != 2:
            raise ConfigError(f"with has_aux=True the function must return (value, aux), got {type(y).__name__}")
        y = y[0]
    if not isinstance(y, (jax.Array, float)) and not hasattr(y, "dtype"):
        hint = "; pass has_aux=True if it is (value, anything else)" if isinstance(y, tuple) else ""
        raise ShapeError(f"the function must return one number, got {type(y).__name__}{hint}")
    if jnp.shape(y):
        raise ShapeError(
            f"the function must return one number, got shape {jnp.shape(y)}; reduce it, for example "
            f"backprop.trace(lambda *args: jax.numpy.sum(f(*args)), ...)"
        )
    if not jnp.issubdtype(jnp.result_type(y), jnp.floating):
        raise DTypeError(f"the function must return a floating-point number, got {jnp.result_type(y)}")
    return y


def _check_concrete(name: str, value: Any) -> None:
    if isinstance(value, jax.core.Tracer):
        raise ConfigError(
            f"{name} is a traced value, and the passes can only be shown with numbers; call backprop.trace "
            f"outside of jit, grad and vmap (jit inside of the function is fine)"
        )


def _argnums(argnums: int | Sequence[int] | None, n: int) -> tuple[int, ...]:
    if argnums is None:
        return tuple(range(n))
    result = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for number in result:
        if checks.integer("argnums", number, minimum=0) >= n:
            raise ConfigError(f"argnums={number} names no argument, the function was given {n}, counted from 0")
    return result


def _signature(f: Callable[..., Any], args: tuple[Any, ...]) -> list[str]:
    """What the arguments are called."""
    try:
        bound = inspect.signature(f).bind(*args)
    except (TypeError, ValueError):  # a builtin has none, and a call that does not fit fails soon
        return [f"x{i}" for i in range(len(args))]
    names = []
    for name, value in bound.arguments.items():
        several = bound.signature.parameters[name].kind == inspect.Parameter.VAR_POSITIONAL
        names += [f"{name}[{i}]" for i in range(len(value))] if several else [name]
    return names


def _name(f: Any) -> str:
    f = getattr(f, "func", f)  # functools.partial
    return getattr(f, "__name__", type(f).__name__)
