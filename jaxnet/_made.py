"""Functions that know the call that made them, so that networks, whose functions are closures, can be pickled.

A closure has no name by which another process could find it. The call that made it has: ``dense(3)`` is the function
`layers.dense` and the number 3. So a constructor under `made` returns functions that are pickled as its call, and
unpickling calls it again.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import FunctionType
from typing import Any, NamedTuple, ParamSpec, TypeVar

from jaxnet.errors import ConfigError, located, named

P = ParamSpec("P")
T = TypeVar("T")


def made(constructor: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function of a module that returns a function, or a named tuple with functions in it. It is its door.

    Example:
      >>> import pickle
      >>> from jaxnet import initializers
      >>> half = pickle.loads(pickle.dumps(initializers.constant(0.5)))
      >>> half(None, (2,), "float32")
      Array([0.5, 0.5], dtype=float32)
    """

    inside = named(constructor.__name__)(constructor)

    @functools.wraps(constructor)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        result: Any = inside(*args, **kwargs)
        if not isinstance(result, tuple):
            return Made(result, Call(call, args, kwargs, {}), None)  # type: ignore[return-value]
        how = Call(call, args, kwargs, {})
        made_of = _belonging(result, how, "")
        how.plain.update({name: value for name, value in made_of._asdict().items() if not callable(value)})
        return made_of

    return call


def _belonging(value: Any, how: "Call", place: str) -> Any:
    """``value`` with each function in it, at any depth of named tuples, pickled as a place in what ``how`` returns."""
    if callable(value):
        return Made(value, how, place)
    if not hasattr(value, "_fields"):
        return value
    dot = f"{place}." * bool(place)
    return type(value)(*(_belonging(one, how, dot + name) for name, one in value._asdict().items()))


class Call(NamedTuple):
    """A constructor and its arguments. What is unpickled in its place is what the call returns.

    ``plain`` are the fields of that which hold no function.
    """

    constructor: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    plain: dict[str, Any]

    def __reduce__(self) -> Any:
        return _call, (self.constructor, encoded(self.args), encoded(self.kwargs))

    def arguments(self) -> Iterator[tuple[str, Any]]:
        """The arguments, each with the place that errors call it by."""
        name = self.constructor.__name__
        signature = inspect.signature(self.constructor)
        for argument, value in signature.bind(*self.args, **self.kwargs).arguments.items():
            if signature.parameters[argument].kind is inspect.Parameter.VAR_POSITIONAL:
                yield from ((f"{name}[{i}]", one) for i, one in enumerate(value))
            else:
                yield f"{name}.{argument}", value


class Made:
    """A function as a constructor returned it, with the call; equal to nothing but itself, as functions are."""

    def __init__(self, function: Any, how: Call, field: str | None):
        function = function.__wrapped__ if isinstance(function, Made) else function
        functools.update_wrapper(self, function)
        self.__wrapped__, self._how, self._field = function, how, field

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    def __reduce__(self) -> Any:
        if not _takes_functions(sys._getframe(1)):
            check(self)
        return (_itself, (self._how,)) if self._field is None else (_field_of, (self._how, self._field))

    def __repr__(self) -> str:
        return repr(self.__wrapped__)

    def __copy__(self) -> "Made":
        return self

    def __deepcopy__(self, memo: Any) -> "Made":
        return self


def reduced(pair: Any) -> Any:
    """What ``__reduce__`` returns of a named tuple of functions that its users make themselves too."""
    if not _takes_functions(sys._getframe(2)):
        check(pair)
    how = _origin(pair)
    return (_itself, (how,)) if how else (type(pair), encoded(tuple(pair)))


def _origin(value: Any) -> Call | None:
    """The call that made a function, or a named tuple that has not been changed since."""
    if isinstance(value, Made):
        return value._how
    how = next((one._how for one in value if isinstance(one, Made)), None) if hasattr(value, "_fields") else None

    def as_made(field, one):
        if isinstance(one, Made):
            return one._how is how and one._field == field
        return how is not None and field in how.plain and one is how.plain[field]

    return how if how and all(map(as_made, value._fields, value)) else None


def check(value: Any, seen: set[int] | None = None) -> None:
    """Refuses what holds a function that another process could not find.

    Raises:
      ConfigError: with the place of the function, and how to make it one that can be found.
    """
    seen = set() if seen is None else seen
    if how := _origin(value):
        inner = () if id(how) in seen else how.arguments()
        seen.add(id(how))
    elif isinstance(value, functools.partial):
        inner = (("", one) for one in (value.func, value.args, value.keywords))
    elif hasattr(value, "_fields"):
        name = getattr(value, "name", type(value).__name__)
        own = {field for field, one in value._asdict().items() if callable(one) and not isinstance(one, Made)}
        inner = ((f"{name}.{field}" * (field in own), one) for field, one in value._asdict().items())
    elif isinstance(value, (tuple, list, dict)):
        inner = (("", one) for one in (value.values() if isinstance(value, dict) else value))
    elif _is_function(value) and not _has_name(value):
        code = getattr(inspect.unwrap(value), "__code__", None)
        where = f" (line {code.co_firstlineno} of {code.co_filename})" if code else ""
        name = getattr(value, "__qualname__", value)
        with named("pickle"):
            raise ConfigError(
                f"{name}{where} has no name by which another process could find it; write it with def at the top of a "
                f"module, and give it values with functools.partial"
            )
    else:
        return
    for place, one in inner:
        with located(place) if place else nullcontext():
            check(one, seen)


def encoded(value: Any) -> Any:
    """``value`` with what pickle cannot find by itself replaced by its name: functions under jit, or custom_jvp."""
    if type(value) in (tuple, list):
        return type(value)(map(encoded, value))
    if type(value) is dict:
        return {key: encoded(one) for key, one in value.items()}
    if type(value) is functools.partial:
        return functools.partial(encoded(value.func), *encoded(value.args), **encoded(value.keywords))
    named = not isinstance(value, (Made, FunctionType)) and _is_function(value) and _has_name(value)
    return Named(value.__module__, value.__qualname__) if named else value  # type: ignore[attr-defined]


class Named(NamedTuple):
    """A function by its name. What is unpickled in its place is the function."""

    module: str
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # so that a partial takes it
        return _found(*self)(*args, **kwargs)

    def __reduce__(self) -> Any:
        return _found, (self.module, self.name)


def _is_function(value: Any) -> bool:
    """Whether pickle would look for it by name, or fail: a function, or one that jit or custom_jvp holds."""
    return isinstance(value, FunctionType) or (hasattr(value, "__wrapped__") and hasattr(value, "__qualname__"))


def _has_name(value: Any) -> bool:
    try:
        return _found(value.__module__, value.__qualname__) is value
    except (ImportError, AttributeError, TypeError, ValueError):
        return False


def _found(module: str, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _takes_functions(caller: Any) -> bool:
    """Whether who pickles writes functions that have no name too, as cloudpickle does; its ``dump`` called us."""
    return hasattr(caller.f_locals.get("self"), "reducer_override")


def _call(constructor: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return constructor(*args, **kwargs)


def _itself(value: Any) -> Any:
    return value


def _field_of(value: Any, place: str) -> Any:
    return functools.reduce(getattr, place.split("."), value)
