"""What makes a run the run that it is, as far as it can be known: its program, and the state that it begins with.

The content of the data is not part of it, nor what a loader of the user's does.
"""

import functools
import hashlib
import re
from typing import Any

import jax

from jaxnet.kernels.lowering.onednn import portable
from jaxnet.training.state import checksum

# Where a program calls back into Python, its text may hold an address, which every process has another of.
_ADDRESS = re.compile(r'(custom_call @\w*callback[^\n]*?backend_config = ")\d+(?=")')

NAMES = {
    "program": "the step's program (network, loss, metrics, regularizer, accumulate, guard)",
    "optimizer": "the optimizer or its settings",
    "freeze": "which parameters are frozen",
    "key": "the key",
    "params": "the parameters to begin with (key, pretrained weights or initializers)",
    "state": "the network's state to begin with",
    "opt_state": "the optimizer's state to begin with",
    "loss_scale": "the loss scale",
}
"""What a person calls the parts of an identity."""

MADE = ("jax", "platform")
"""What a program is made by, which is part of it too."""


def of_start(train_state: Any) -> dict[str, str]:
    """The identity of what a run begins with, a short text a field of the state, which this process has whole."""
    fields = train_state._asdict() if hasattr(train_state, "_asdict") else vars(train_state)
    return {name: f"{checksum(tree):08x}" for name, tree in fields.items() if name not in ("step", "guard")}


def of_step(step: Any, train_state: Any, batch: Any) -> dict[str, str]:
    """The identity of what a run computes on a batch, of all processes together, of which shapes and dtypes count."""
    made = dict(zip(MADE, (jax.__version__, jax.default_backend()), strict=True))
    return {"program": of_program(step, train_state, batch), **made}


def shapes(batch: Any) -> list[Any]:
    """The shapes and dtypes of a batch, as JSON."""
    return [[list(leaf.shape), leaf.dtype.name] for leaf in jax.tree.leaves(batch)]


def as_before(batch: Any, before: list[Any] | None) -> Any:
    """A batch of the shapes that `shapes` gave, if it could be one of the same data: first axes may differ."""
    leaves, treedef = jax.tree.flatten(batch)
    if before is None or len(before) != len(leaves):
        return batch
    for leaf, (shape, dtype) in zip(leaves, before, strict=True):
        if leaf.dtype.name != dtype or list(leaf.shape[1:]) != shape[1:]:
            return batch
    return treedef.unflatten([jax.ShapeDtypeStruct(tuple(shape), dtype) for shape, dtype in before])


def of_program(f: Any, *arguments: Any) -> str:
    """A fingerprint of what a function computes: of its lowered program, in which every constant stands.

    It is the program of every processor: what a library of this one computes faster is computed all the same elsewhere.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)  # wherever they lie
    with portable():
        anew = functools.wraps(f)(lambda *arguments: f(*arguments))  # of its name; not as it was lowered before
        text = jax.jit(anew).lower(*shapes).as_text()
    return hashlib.sha256(_ADDRESS.sub(r"\1", text).encode()).hexdigest()[:16]


def differences(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> str:
    """What a person would say differs between two runs' settings and identities, or nothing.

    Another version of JAX alone is no difference.
    """
    had, has = before.get("identity", {}), now["identity"]
    names: list[str] = [name for name in {**NAMES, **has} if name not in MADE and had.get(name) != has.get(name)]
    if "optimizer" in names and "program" in names:
        names.remove("program")  # of which the optimizer is a part
    text = ", ".join(NAMES.get(name, name) for name in names)
    (jax_before, made_for), (jax_now, makes_for) = ([of.get(name) for name in MADE] for of in (had, has))
    if text and (jax_before, made_for) != (jax_now, makes_for):
        text += f"; it was compiled by JAX {jax_before} for {made_for}, now {jax_now} for {makes_for}, whose programs "
        text += "may differ by themselves"
    settings = changes(before.get("settings", {}), now["settings"])
    return f"{settings}, {text}" if settings and text else settings or text


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two dicts of settings: what it was, and what it is."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)!r}, now {now.get(name)!r}" for name in names)
