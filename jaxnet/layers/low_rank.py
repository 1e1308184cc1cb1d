"""Low-rank adaptation (LoRA): a kernel that is learned as a small change of one that is there."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import initializers
from jaxnet._dtypes import wide
from jaxnet._made import made
from jaxnet.errors import ConfigError, ShapeError, located
from jaxnet.initializers import Initializer
from jaxnet.layers import reparametrized
from jaxnet.layers.inside import looked_into, rebuilt
from jaxnet.layers.layer import Layer, Merged, Params, State, as_layer, entered
from jaxnet.layers.layer import layer as define
from jaxnet.paths import chosen


@made
def low_rank(
    layer: Layer | Callable[..., Any],
    rank: int,
    params: Params = None,
    state: State = (),
    *,
    alpha: float | None = None,
    which: str | Sequence[str] = "*kernel",
    down_init: Initializer = initializers.lecun_normal(),  # noqa: B008, a pure function
) -> Layer:
    """Adds a product of two small matrices to a kernel, W' = W + (alpha / r) A B, to learn these instead of W (LoRA).

    Around a whole network it does so for each kernel in it that ``which`` chooses: of a convolution too, and of all
    that an attention or a recurrent layer has; what is `frozen` stays so. B starts at 0, so that the network computes
    at first, to the bit, what it would compute without. In the usual use all else is frozen,
    ``training.stepping(freeze="!*low_rank")``, and `merged` gives back the plain network with what was learned in its
    kernels.

    The sum is made anew each time the layer is applied. So the gradient costs what that of W costs; what is saved is
    the optimizer's state, and what there is to keep of each task.

    Args:
      layer: a layer with a kernel, or a network with such layers in it.
      rank: r, how many columns A has.
      params: trained parameters of ``layer``, to begin with; drawn by its ``init`` unless given.
      state: its state, where the parameters are given.
      alpha: the factor on the change is alpha / r; r unless given, for a factor of 1.
      which: which kernels, by a pattern of their paths in the plain params, or several, as in `paths.select`; an
        embedding's table is one too, ``"*table"``.
      down_init: ``f(key, shape, dtype)`` for A.

    Returns:
      The layer with one entry more in its params, a dict ``low_rank`` that has for each kernel's name a dict of
      ``down``, A of shape (..., N_in, r), and ``up``, B of shape (r, N_out), where the kernel is (..., N_in, N_out).

    Raises:
      ConfigError: ``rank`` or ``alpha`` out of range; no kernel is there, a pattern or a function chooses none, or
        nothing can be put into a network in it; params of another network.
      ShapeError: what is chosen is no matrix; a ``down`` or an ``up`` of another shape.
      DTypeError: one of another dtype than the kernel.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers
      >>> net = layers.low_rank(layers.chain(layers.dense(8), jnp.tanh, layers.dense(2)), rank=1, which="0/*")
      >>> params, state = net.init(0, jnp.ones((1, 4)))
      >>> jax.tree.map(jnp.shape, params[0])
      {'bias': (8,), 'kernel': (4, 8), 'low_rank': {'kernel': {'down': (4, 1), 'up': (1, 8)}}}

    Source: Hu et al. 2021, arXiv 2106.09685.
    """
    net, rank = as_layer(layer), checks.integer("rank", rank, minimum=1)
    scale = 1.0 if alpha is None else checks.number("alpha", alpha, low=0, open_low=True) / rank
    checks.function("down_init", down_init)
    found = dict.fromkeys(path for path, _, _ in _kernels(net, ""))
    if not found:
        raise ConfigError(f"no layer in the {net.name} has a kernel; a layer of your own says so with fan_in=")
    adapting = {path for path, on in chosen(dict.fromkeys(found, 0), which).items() if on}
    adapted = _inside(net, "", adapting, lambda inner, names: _low_rank(inner, names, rank, scale, down_init))
    if params is None:
        if jax.tree.leaves(state):
            raise ConfigError("a state was given without parameters; give both, low_rank(layer, rank, params, state)")
        return adapted

    def init(key, x):
        return _around(adapted.init(key, x)[0], params, ""), state

    return adapted._replace(init=entered("low_rank", init, "init"))


def _kernels(net: Layer, path: str) -> Iterator[tuple[str, Layer, str]]:
    """Of each layer without parts its kernels and tables: the path in the params, the layer, the name there."""
    if net.about.trees == "state":
        return
    if net.about.parts:
        for label, part in looked_into(net) or _closed(net):
            yield from _kernels(part, f"{path}{label}/" if net.about.trees == "apart" else path)
        return
    entries = [(of,) if isinstance(of, str) else of for of, _, _ in net.about.torch]
    names = [name for of in entries for name in of]
    if net.about.fan_in is not None and "kernel" not in names:
        names.append("kernel")
    yield from ((path + name, net, name) for name in names if name.endswith(("kernel", "table")))


def _closed(net: Layer) -> Any:
    raise ConfigError(
        f"nothing can be put into a {net.name}; adapt the network inside it, layers.{net.name}(layers.low_rank(...))"
    )


def _inside(net: Layer, path: str, chosen: set[str], wrap: Callable[[Layer, list[str]], Layer]) -> Layer:
    names = [name for place, one, name in _kernels(net, path) if place in chosen and one is net]
    if names:
        return wrap(net, names)
    if not net.about.parts or net.about.trees == "state":
        return net
    new = []
    for label, part in looked_into(net):
        with located(f"{net.name}[{label}]" if label.isdecimal() else f"{net.name}.{label}"):
            new.append(_inside(part, f"{path}{label}/" if net.about.trees == "apart" else path, chosen, wrap))
    return rebuilt(net, new)


@made
def _low_rank(inner: Layer, names: list[str], rank: int, scale: float, down_init: Initializer) -> Layer:
    def init(key, x):
        params, state = inner.init(key, x)
        drawn = {}
        for i, name in enumerate(names):
            kernel = _at(params, name)
            if kernel.ndim < 2:
                raise ShapeError(f"{name} has the shape {kernel.shape}, and is no matrix; choose others by which=")
            shape = (*kernel.shape[:-1], rank)
            one = jax.random.fold_in(checks.key(key), i)  # so that the layer's own are what they were without
            down = initializers.draw(down_init, one, shape, kernel.dtype, (math.prod(shape[:-1]), rank))
            drawn[name] = {"down": down, "up": jnp.zeros((rank, kernel.shape[-1]), kernel.dtype)}
        return {**params, "low_rank": drawn}, state

    def effective(params, state):
        if not isinstance(params, dict) or not isinstance(params.get("low_rank"), dict):
            raise ConfigError("params must have a low_rank; pass what this layer's init returned, or params=")
        new = {name: leaf for name, leaf in params.items() if name != "low_rank"}
        for name, (down, up) in zip(names, _pairs(params["low_rank"], names), strict=True):
            kernel = checks.array(name, _at(new, name))
            wanted = (*kernel.shape[:-1], rank), (rank, *kernel.shape[-1:])
            if (down.shape, up.shape) != wanted:
                raise ShapeError(
                    f"{name} {kernel.shape} has a down and an up of shapes {wanted[0]} and {wanted[1]}, got "
                    f"{down.shape} and {up.shape}; pass what this layer's init returned"
                )
            checks.same_dtype(kernel=kernel, down=down, up=up)
            change = jnp.matmul(wide(down).reshape(-1, rank), wide(up)).reshape(kernel.shape)
            new = _with(new, name, (wide(kernel) + scale * change).astype(kernel.dtype))
        return new, state

    def apply(params, state, x, *, train, key):
        return inner.apply(*effective(params, state), x, train=train, key=key)

    about = inner.about._replace(
        torch=_torch(inner, names), stream=reparametrized.streamed(inner, effective), merged=Merged(inner, effective)
    )
    return define(inner.name, init, apply, **about._asdict())


def _pairs(tree: dict[str, Any], names: list[str]) -> list[tuple[jax.Array, ...]]:
    if set(tree) != set(names):
        raise ConfigError(f"low_rank must be of {', '.join(names)}, got {', '.join(tree)}")
    return [checks.leaves(tree[name], "down", "up", tree_name=f"low_rank of {name}") for name in names]


def _at(params: Any, name: str) -> Any:
    for step in name.split("/"):
        if not isinstance(params, dict) or step not in params:
            raise ConfigError(f"no {name} is among the params; choose others by which=")
        params = params[step]
    return params


def _with(params: Any, name: str, leaf: Any) -> Any:
    step, _, rest = name.partition("/")
    return {**params, step: _with(params[step], rest, leaf) if rest else leaf}


def _around(drawn: Any, plain: Any, path: str) -> Any:
    """The drawn params with the plain ones in their place, but for what the plain ones lack."""
    if isinstance(drawn, dict):
        mine = drawn.keys() - {"low_rank"}
        if isinstance(plain, dict) and plain.keys() == mine:
            return {n: one if n not in mine else _around(one, plain[n], f"{path}/{n}") for n, one in drawn.items()}
    elif isinstance(drawn, (tuple, list)):
        if isinstance(plain, (tuple, list)) and len(plain) == len(drawn):
            return type(drawn)(_around(*pair, f"{path}/{i}") for i, pair in enumerate(zip(drawn, plain, strict=True)))
    elif jnp.shape(drawn) == jnp.shape(plain) and hasattr(plain, "dtype"):
        return jnp.array(plain)
    raise ConfigError(
        f"params do not fit the layer at {path[1:] or 'the top'}: {checks.describe(plain)} for "
        f"{checks.describe(drawn)} (but for its low_rank); give the plain layer's own"
    )


def _torch(inner: Layer, names: list[str]) -> tuple[Any, ...]:
    """In the names of Hugging Face's PEFT."""
    table: list[Any] = []
    for of, theirs, into in inner.about.torch:
        table.append((of, f"base_layer.{theirs}", into))
        for name in (of,) if isinstance(of, str) else of:
            if name in names:
                called = theirs if isinstance(of, str) else name
                down = into if theirs == "weight" and into is not None else _last_first
                table.append((f"low_rank/{name}/down", f"lora_A.{called}", down))
                table.append((f"low_rank/{name}/up", f"lora_B.{called}", _last_first))
    return tuple(table)


def _last_first(matrix: jax.Array) -> jax.Array:
    return jnp.moveaxis(matrix, -1, 0)
