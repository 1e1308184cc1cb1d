"""What came and what to give instead, in a few words: for errors, which never print the numbers that a tree holds."""

import datetime
import importlib
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import jax.core
import numpy as np

_LONGEST = 60  # of what Python itself says of a value

_MODULES = ("losses", "metrics", "activations", "initializers", "regularizers", "optimizers")

ORDER = "the order is (net, loss, optimizer)"


def came(value: Any) -> str:
    """What a value is.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import _words, layers, optimizers
      >>> for value in ("mse", jnp.ones((2, 3)), layers.dense(3), optimizers.sgd(0.1), [{"kernel": jnp.ones(3)}, ()]):
      ...     print(_words.came(value))
      'mse'
      float32 (2, 3)
      the layer dense
      an optimizer
      a list of 2, first a dict of kernel
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, jax.core.Tracer) and value.shape == ():
        return f"a traced {value.dtype}"
    gone = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer) and value.is_deleted()
    if hasattr(value, "shape") and hasattr(value, "dtype") and (value.shape != () or gone):
        return f"{value.dtype} {tuple(value.shape)}"
    if _is_pair(value, "apply"):
        name = getattr(value, "name", "")
        return f"the layer {name}" if name else f"a {type(value).__name__}"
    if is_optimizer(value):
        return "an optimizer"
    if callable(value):
        name = getattr(value, "__name__", "<lambda>")
        return f"a {type(value).__name__}" if name == "<lambda>" else f"the function {name}"
    if isinstance(value, (tuple, list, dict)) and value and not _is_plain(value):
        kind = type(value).__name__
        if isinstance(value, dict):
            names = list(map(str, value))
            return f"a {kind} of {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        return (
            f"a {kind} of {came(value[0])}" if len(value) == 1 else f"a {kind} of {len(value)}, first {came(value[0])}"
        )
    said = repr(value)
    if isinstance(value, str):
        return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
    return said if len(said) <= _LONGEST and " at 0x" not in said and "\n" not in said else f"a {type(value).__name__}"


def no_function(name: str, value: Any) -> str:
    """Of what is not callable, where a function called ``name`` is wanted."""
    hint = by_name(value)
    if name == "loss" and (is_optimizer(value) or _is_pair(value, "apply")):
        hint = f"; {ORDER}"
    elif name == "loss" and are_arrays(value):
        hint = f"; {ORDER}, and data come after them"
    elif name == "optimizer" and is_optimizer(value):
        hint = "; give what makes one of the settings, lambda rate: optimizers.adam(rate)"
    return f"{name} must be callable, got {came(value)}{hint}"


def no_layer(called: str, part: Any) -> str:
    """Of what is neither a layer nor a function."""
    hint = by_name(part)
    several = isinstance(part, (tuple, list))
    if is_optimizer(part):
        hint = "; an optimizer is no part of a network: training.fit takes it after the loss"
    elif isinstance(part, type) and not hasattr(part, "apply") and any("__call__" in vars(one) for one in part.__mro__):
        hint = f"; give one of its objects, {part.__name__}(...)"
    elif isinstance(part, type) or _is_pair(part, "apply"):
        hint = "; make a layer of its two functions, layers.layer('name', init, apply)"
    elif isinstance(part, tuple) and len(part) == 2 and all(map(callable, part)):
        hint = "; make a layer of a pair of functions, layers.layer('name', init, apply)"
    elif several and any(callable(one) or _is_pair(one, "apply") for one in part):
        hint = "; unpack the list: chain(*layers)"
    elif (several or isinstance(part, dict)) and are_arrays(part):
        hint = "; give the network of these parameters, and to begin with them training.pretrained(net, params, state)"
    return f"{called} must be a layer or a function of its input, got {came(part)}{hint}"


def no_optimizer(value: Any) -> str:
    """Of what is no pair with init and update."""
    hint = by_name(value)
    if inspect.isfunction(value):
        of_loss = value.__module__.startswith(("jaxnet.losses", "jaxnet.metrics"))
        hint = f"; {ORDER}" if of_loss else f"; call it first: {value.__name__}(...)"
    elif _is_pair(value, "apply"):
        hint = f"; {ORDER}"
    elif isinstance(value, float):
        hint = f"; a rate alone says no rule: optimizers.adam({value:g})"
    elif are_arrays(value):
        hint = "; arrays come after it: training.init(net, optimizer, x, key), optimizer.init(params)"
    return f"an optimizer is a pair with init and update, got {came(value)}{hint}"


def of_no_numbers(name: str, array: np.ndarray, read: str, read_whole: str) -> str:
    """How to make numbers of an array that holds none; "" where there is no way to say.

    Args:
      name: what it is called in Python.
      read: what reads numbers from texts.
      read_whole: what reads whole ones.
    """
    if array.dtype.kind in "mM":
        since = name if array.dtype.kind == "m" else f"({name} - min({name}))"
        return f"make numbers of times, such as days: {since} / numpy.timedelta64(1, 'D')"
    flat = array.ravel().tolist() if array.dtype.kind in "USTO" else []
    if flat and all(isinstance(value, datetime.date) for value in flat):
        return f"make numbers of dates, such as days: [v.toordinal() for v in {name}]"
    text = [value.strip() for value in flat if isinstance(value, str)]
    if any(text) and len(text) == len(flat) and all(_reads_as_number(value) for value in text if value):
        gaps = f" but for gaps, first at index {text.index('')}: fill them, then" if "" in text else ":"
        whole = all(value.lstrip("+-").isdecimal() for value in text)
        return f"its texts read as numbers{gaps} {read_whole if whole else read}"
    return ""


_SPELLINGS = {
    "affine": ("scale", "scale=, and offset= where there is one,"),
    "batch": ("batch_size", "batch_size="),
    "betas": ("b1", "b1= and b2="),
    "bidirectional": ("direction", "direction='both'"),
    "callback": ("callbacks", "callbacks=[...]"),
    "checkpoint_dir": ("keep", "keep="),
    "criterion": ("loss", "loss="),
    "elementwise_affine": ("scale", "scale=, and offset= where there is one,"),
    "embedding_dim": ("entries", "features="),
    "eps": ("epsilon", "epsilon="),
    "hidden_size": ("units", "units="),
    "in_channels": ("filters", "left out, the example for init tells it,"),
    "in_features": ("units", "left out, the example for init tells it,"),
    "input_size": ("units", "left out, the example for init tells it,"),
    "kernel_size": ("window", "window="),
    "loss_fn": ("loss", "loss="),
    "lr": ("learning_rate", "learning_rate="),
    "max_epochs": ("epochs", "epochs="),
    "momentum": ("decay", "decay=, which is PyTorch's 1 - momentum, and Flax's and Keras's momentum itself,"),
    "n_epochs": ("epochs", "epochs="),
    "negative_slope": ("slope", "slope="),
    "num_embeddings": ("entries", "entries="),
    "num_epochs": ("epochs", "epochs="),
    "num_features": ("scale", "left out, the example for init tells it,"),
    "num_heads": ("heads", "heads="),
    "out_channels": ("filters", "filters="),
    "out_features": ("units", "units="),
    "p": ("rate", "rate="),
    "patience": ("early_stopping", "early_stopping="),
    "seed": ("key", "key= of the parameters"),
    "stride": ("strides", "strides="),
    "use_bias": ("bias", "bias="),
    "validation_data": ("validation", "validation="),
    "validation_split": ("validation", "validation=, a part of data.split,"),
    "verbose": ("progress", "progress="),
}
"""How PyTorch, Flax or Keras calls an argument: the one of ours by which it is known to be meant, and what it is."""


_OPTIONS = {"step": "stepping", "keep": "keep", "data": "arrays"}
"""What `training.fit` takes, by the function of `training` that makes it of options of its own."""

_SIZES = {"units", "filters", "heads", "scale"}


def not_bound(function: Callable[..., Any], error: TypeError, args: Collection[Any], kwargs: Collection[str]) -> str:
    """Of arguments that Python could not give to a function: its own words, what was meant, and how it is called."""
    name, parameters = function.__name__, inspect.signature(function).parameters
    if said := _spelled_otherwise(parameters, kwargs):
        return f"{name}() got an unexpected keyword argument; {said}{_option_of(name, parameters, kwargs)}"
    ordered = [one for one in parameters.values() if one.kind is not one.KEYWORD_ONLY]
    more = len(args) > len(ordered) and all(isinstance(one, int) for one in args)
    sizes = more and _SIZES & parameters.keys()
    hint = "; sizes of the input are left out, the example for init tells them" if sizes else ""
    if ordered and len(args) == len(ordered) + 1 and ordered[-1].name in ("data", "batch"):
        hint = "; x and target are one argument, (x, target)"
    hint += _option_of(name, parameters, kwargs)
    return f"{error}{hint}; it is called {name}({_names(parameters.values())})"


def _names(parameters: Iterable[inspect.Parameter]) -> str:
    """Those of a signature, without their defaults, as they stand in a call's definition."""
    bare = [one.replace(annotation=one.empty, default=one.empty) for one in parameters]
    return str(inspect.Signature(bare))[1:-1]


def _spelled_otherwise(parameters: Collection[str], given: Collection[str]) -> str:
    """What arguments are here that have another library's names; "" if none has."""
    foreign = [name for name in given if name not in parameters]
    theirs = [name for name in foreign if _SPELLINGS.get(name, ("",))[0] in parameters]
    said = [f"{name}= is {_SPELLINGS[name][1]} here" for name in theirs]
    if "optimizer" in parameters:
        rates = [name for name in foreign if name in ("lr", "learning_rate")]
        said += [f"{name}= goes into the optimizer, such as optimizers.adam(0.001)" for name in rates]
    return "; ".join(said)


def _option_of(function: str, parameters: Collection[str], given: Collection[str]) -> str:
    """Where an argument of `training.fit` belongs that is an option of another's; "" if none is."""
    if function != "fit":
        return ""
    training = importlib.import_module("jaxnet.training")
    for taken, maker in _OPTIONS.items():
        options = inspect.signature(getattr(training, maker)).parameters
        for name in given:
            if taken in parameters and name not in parameters and name in options:
                return f"; {name}= goes into {taken}=training.{maker}({name}=...)"
    return ""


def by_name(value: Any) -> str:
    """What a text names, if it does: where it is wanted itself."""
    if isinstance(value, str):
        for module in _MODULES:
            found = getattr(importlib.import_module(f"jaxnet.{module}"), value, None)
            if callable(found):
                itself = module in ("losses", "metrics", "activations") or value in ("zeros", "ones")
                made = "" if itself else "(...)"
                return f"; give it itself, not its name: {module}.{value}{made}"
    return ""


def is_optimizer(value: Any) -> bool:
    """Whether it is an ``(init, update)`` pair, of any library."""
    return _is_pair(value, "update")


def is_made_of_functions(value: Any) -> bool:
    """Whether it is a network or an optimizer, in the place of the arrays that they make."""
    return _is_pair(value, "apply") or is_optimizer(value)


def is_module(value: Any) -> bool:
    """Whether it is a class whose objects would be called, as layers are made in other libraries; no dtype is one."""
    names = {name for one in value.__mro__ for name in vars(one)} if isinstance(value, type) else set()
    return bool(names & {"__call__", "apply", "forward"})


def are_arrays(tree: Any) -> bool:
    """Whether it is a tree of arrays, and of nothing else."""
    leaves = jax.tree.leaves(tree)
    return bool(leaves) and all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves)


def _is_pair(value: Any, second: str) -> bool:
    if isinstance(value, type):
        return False
    return callable(getattr(value, "init", None)) and callable(getattr(value, second, None))


def _is_plain(value: Any) -> bool:
    """Whether it holds what Python says in a few words: numbers and texts."""
    leaves = jax.tree.leaves(value)
    return len(leaves) < 8 and all(isinstance(leaf, (int, float, complex, str)) for leaf in leaves)


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
