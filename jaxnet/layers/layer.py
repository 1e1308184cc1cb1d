"""The protocol: a layer is a pair of pure functions over parameters and a state that the user owns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import jax

from jaxnet import _checks as checks
from jaxnet import _made
from jaxnet import _words as words
from jaxnet._made import made
from jaxnet.errors import ConfigError, located, named
from jaxnet.layers import protocol
from jaxnet.layers.protocol import entered, initialized, name_of, ran

Params = Any
"""A pytree of arrays that learn: a dict with full names in a layer, a tuple or dict of those in a container."""

State = Any
"""A pytree of arrays that change without being learned (batch norm's averages); () where there are none."""


class Init(Protocol):
    """Draws parameters and a starting state, given one key and an example input (or just its shape and dtype)."""

    def __call__(self, key: Any, x: Any, /) -> tuple[Params, State]: ...


class Apply(Protocol):
    """Computes the output and the next state."""

    def __call__(
        self, params: Params, state: State, x: Any, /, *, train: bool, key: Any = None
    ) -> tuple[Any, State]: ...


class Stream(NamedTuple):
    """How a layer is fed piece by piece along axis 1, for `streaming`.

    Attributes:
      start: ``(params, state, x, capacity) -> memory``: what is remembered before the first piece, a pytree of arrays;
        x is the shape and dtype of a piece, whose length says nothing, ``capacity`` how many positions the user wants
        remembered, or None.
      step: ``(params, state, memory, x) -> (y, memory)``. Outputs of pieces joined are the output of the pieces
        joined, of pieces of length 0 too. Shapes of memory may tell how many values wait; with pieces that the strides
        divide they must stay as they are, so that a scan can carry it.
    """

    start: Callable[[Params, State, Any, int | None], Any]
    step: Callable[[Params, State, Any, Any], tuple[Any, Any]]


class Around(NamedTuple):
    """How a container is fed piece by piece, where its ``rebuild`` does not say it.

    Attributes:
      rebuild: makes it around parts that are.
      join: makes its output of a sequence of theirs, where what ``rebuild`` makes returns that.
      waits: whether what one part gives early is kept until the others have come; else they must be of one length.
    """

    rebuild: Callable[..., Layer]
    join: Callable[[Any], Any] | None = None
    waits: bool = True


class Merged(NamedTuple):
    """What a layer that computes the kernel of another becomes where that is done once for all, by `merged`.

    Attributes:
      layer: the other layer.
      trees: ``(params, state) -> (params, state)``, from the layer's to the other's.
    """

    layer: Layer
    trees: Callable[[Params, State], tuple[Params, State]]


class Memory(NamedTuple):
    """The state of a layer that `streaming` feeds piece by piece: its own, and what it remembers of the pieces.

    Attributes:
      state: the layer's own.
      memory: what it remembers of the pieces, a tree of arrays.
    """

    state: State
    memory: Any


class About(NamedTuple):
    """What a layer tells to tools: `summary`, `streaming`, `jaxnet.interop`, `jaxnet.diagnostics`. All has a default.

    Attributes:
      parts: a container's layers, with the label of each.
      rebuild: makes the same container around other parts, given in the same order; without it no tool looks inside.
      trees: where a container keeps the params and the state of its parts: "apart", a tuple or a dict with an entry a
        part; "same", those of its one part are its own; "stacked", so are those of the copies of its one part, along
        a new first axis; "state", both of its one part are in its state, a dict of ``params`` and ``state``, and
        tools that measure see one layer.
      torch: how PyTorch keeps the layer's arrays: a tuple of ``(leaf, name, f)``, the leaf's name here, the name there,
        and the function that moves the leaf's elements into PyTorch's order, or None where it is the same. Of several
        leaves that are one array there, a tuple of their names, and a function of all of them.
      fan_in: of a layer with the param ``kernel``, from its shape to how many inputs reach one output.
      normalizes: whether the layer undoes the scale of its input, as norms do.
      stream: how it is fed piece by piece: "pointwise", each position for itself; a `Stream`; or in words why it
        cannot be, and what to do. Of a container an `Around`, where ``rebuild`` is not enough.
      merged: of a layer that computes another's kernel, as `weight_norm` does, what it is without that: a `Merged`.
      statistics: of a layer whose state averages what it sees in training, as `batch_norm`'s does, makes the same layer
        with a state of the last batch's alone; `training.reestimate` takes the mean of those.
    """

    parts: tuple[tuple[str, Layer], ...] = ()
    rebuild: Callable[..., Layer] | None = None
    trees: Literal["apart", "same", "stacked", "state"] = "apart"
    torch: tuple[tuple[str | tuple[str, ...], str, Callable[..., Any] | None], ...] = ()
    fan_in: Callable[[tuple[int, ...]], float] | None = None
    normalizes: bool = False
    stream: str | Stream | Around | None = None
    merged: Merged | None = None
    statistics: Callable[[], Layer] | None = None

    def __reduce__(self) -> Any:
        return type(self), _made.encoded(tuple(self))


class Layer(NamedTuple):
    """A layer, or a whole network: two pure functions.

    ``init(key, x) -> (params, state)`` takes an array or a `jax.ShapeDtypeStruct` as x, or any pytree of them;
    parameters get its dtype. ``apply(params, state, x, *, train, key=None) -> (y, state)`` always returns two things.
    ``train`` is a Python bool; a layer that draws random numbers while training needs ``key``.

    A network can be pickled, and so sent to other processes: what is written is the calls that made it. Functions of
    your own in it must be found by their names, so no lambdas: write them with ``def`` at the top of a module, and
    give them values with `functools.partial`.

    Attributes:
      init: draws the parameters and the state.
      apply: computes the output and the next state.
      name: what error messages and tables call it.
      about: what it tells to tools; a layer of your own needs none of it. `layer` and `stateless` take its fields by
        name, and ``net.described(torch=...)`` gives another.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers
      >>> net = layers.chain(layers.dense(8), jax.nn.relu, layers.dense(1))
      >>> params, state = net.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 4), jnp.float32))
      >>> y, state = net.apply(params, state, jnp.ones((32, 4)), train=True)
      >>> y.shape
      (32, 1)
    """

    init: Init
    apply: Apply
    name: str = "layer"
    about: About = About()

    def described(self, **about: Any) -> Layer:
        """The same layer with other fields of `About`."""
        return self._replace(about=self.about._replace(**about))

    def __repr__(self) -> str:
        parts = [part.name for _, part in self.about.parts]
        of = f" of {', '.join(parts[:8])}" if parts else ""
        return f"Layer({self.name}{of}{f' and {len(parts) - 8} more' if len(parts) > 8 else ''})"

    def __reduce__(self) -> Any:
        return _made.reduced(self)

    def __copy__(self) -> Layer:
        return self

    def __deepcopy__(self, memo: Any) -> Layer:  # it holds no arrays: a copy would only be compiled again
        return self


@made
def layer(name: str, init: Callable[..., Any] | None, apply: Callable[..., Any], **about: Any) -> Layer:
    """Makes a layer of your own from its two functions, with what every layer repeats.

    Errors from inside begin with its name; x of ``init`` comes as shapes and dtypes; ``train`` is a bool. For a layer
    without state, `stateless` asks for less.

    Args:
      name: what errors and tables call it.
      init: ``(key, x) -> (params, state)``, where x is a `jax.ShapeDtypeStruct`, or a pytree of them; None of a layer
        that has neither, and refuses any.
      apply: ``(params, state, x, *, train, key) -> (y, state)``; ``key`` is None where the caller gave none.
      **about: what tools are told of it, the fields of `About`, such as ``torch``.

    Returns:
      A layer.

    Raises:
      ConfigError: ``init`` or ``apply`` is not callable, or takes other arguments, or the name is no string; from the
        layer: a function that does not return two things, a ``train`` that is no bool, an argument that is missing, a
        random number drawn without a key, an ``init`` that reads x's values.
      DTypeError: from the layer's ``init``: an x that is no array, a parameter that is no number.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers
      >>> def average(params, state, x, *, train, key):
      ...     mean = 0.9 * state + 0.1 * x.mean() if train else state
      ...     return x - mean, mean
      >>> centered = layers.layer("centered", lambda key, x: ((), jnp.zeros((), x.dtype)), average)
      >>> params, state = centered.init(0, jnp.ones((2, 3)))
      >>> centered.apply(params, state, jnp.ones((2, 3)), train=True)[1]
      Array(0.1, dtype=float32)
    """
    if not isinstance(name, str):
        raise ConfigError(f"name must be a string, got {words.came(name)}")
    draw = checks.takes("init", _nothing if init is None else init, "key", "x")
    checks.takes("apply", apply, "params", "state", "x", train=True, key=None)

    def initialize(key, x):
        key, x = checks.key(key), checks.structs(x)
        try:
            drawn = draw(key, x)
        except (TypeError, AttributeError) as error:
            protocol.read_values(error)
            raise
        return initialized(drawn)

    @functools.wraps(apply)
    def applying(params, state, x, *, train, key=None):
        checks.flag("train", train)
        if init is None:
            checks.nothing("params", params)
            checks.nothing("state", state)
        try:
            result = apply(params, state, x, train=train, key=key)
        except TypeError as error:
            protocol.drew(key, train, error)
            raise
        return ran(result)

    del applying.__wrapped__  # whose signature has no default for the key
    return Layer(entered(name, initialize, "init"), entered(name, applying, "apply"), name, About(**about))


@made
def stateless(
    init: Callable[..., Params] | None, f: Callable[..., Any], *, name: str | None = None, **about: Any
) -> Layer:
    """Makes a layer of your own from two functions: what it learns, and what it computes.

    Args:
      init: ``(key, x) -> params``, where x is a `jax.ShapeDtypeStruct`, or a pytree of them; None if nothing is
        learned, and params must be ``()``.
      f: ``(params, x) -> y``; its output shape is inferred.
      name: what errors and tables call the layer; the name of ``f`` unless given.
      **about: what tools are told of it, the fields of `About`, such as ``torch``.

    Returns:
      A layer with state ``()`` that behaves alike in training and evaluation.

    Raises:
      ConfigError: ``init`` or ``f`` is not callable, or takes other arguments; from the layer: params that are a pair
        with ().

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers
      >>> scale = layers.stateless(lambda key, x: {"scale": jnp.ones((), x.dtype)}, lambda p, x: p["scale"] * x)
      >>> params, state = scale.init(jax.random.key(0), jnp.ones((2, 3)))
      >>> scale.apply(params, state, jnp.ones((2, 3)), train=False)[0].shape
      (2, 3)
    """
    draw = checks.takes("init", _no_params if init is None else init, "key", "x")
    if not checks.accepts(f, None, None) and init is None and checks.accepts(f, None):
        hint = "a container takes it as it is, without stateless"
        raise ConfigError(f"f must take (params, x), got a function of x alone; {hint}")
    checks.takes("f", f, "params", "x")

    def initialize(key, x):
        return protocol.own(draw(key, x), key), ()

    def apply(params, state, x, *, train, key):
        del train, key
        checks.nothing("state", state)
        if init is None:
            checks.nothing("params", params)
        try:
            return f(params, x), state
        except (TypeError, AttributeError) as error:
            protocol.took_a_pair(params, error)
            raise

    return layer(name or name_of(f), initialize, apply, **about)


@made
def parameterless(f: Callable[..., Any], name: str | None = None, **about: Any) -> Layer:
    """The layer of a bare callable, which learns nothing."""
    return stateless(None, lambda params, x: f(x), name=name or name_of(f), **about)


def as_layer(part: Layer | Callable[..., Any], called: str = "a part") -> Layer:
    """``part`` as a layer, ``called`` so in errors; a bare callable becomes one without parameters."""
    if isinstance(part, Layer):
        return part
    if not callable(part) or words.is_module(part):
        raise ConfigError(words.no_layer(called, part))
    if (getattr(part, "__module__", None) or "").startswith("jaxnet.layers."):
        name = name_of(part)
        raise ConfigError(f"{name} is what makes the layer, not the layer: call it, layers.{name}(...)")
    return parameterless(part)


def _nothing(key: Any, x: Any) -> tuple[Params, State]:
    return (), ()


def _no_params(key: Any, x: Any) -> Params:
    return ()


@contextmanager
def applied(place: str, part: Layer) -> Iterator[None]:
    """Names the place of a part while it is applied: in errors, in profiles, and to `jaxnet.backprop`."""
    with located(place, part.name), jax.named_scope(f"{place} {part.name}"):
        yield


def output_struct(part: Layer, params: Params, state: State, x: Any) -> Any:
    """The shape and dtype of a layer's output, inferred by tracing it in evaluation; nothing is computed."""

    def output(params, state, x):
        applied = ran(part.apply(params, state, x, train=False))
        with named(part.name):
            return protocol.whole(applied, state)

    return jax.eval_shape(output, params, state, x)
