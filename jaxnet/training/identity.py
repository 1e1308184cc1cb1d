"""What makes a run the run that it is, as far as it can be known: its program, and the state that it begins with.

The content of the data is not part of it, nor what a loader of the user's does.
"""

import hashlib
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Where a program calls back into Python, its text holds an address, which every process has another of.
_ADDRESS = re.compile(r'(callback[^\n]*?)"\d+"|0x[0-9a-f]{8,}(?=[^0-9a-f"])')

NAMES = {
    "program": "the step's program (network, loss, metrics, regularizer, accumulate)",
    "optimizer": "the optimizer or its settings",
    "key": "the key",
    "params": "the parameters to begin with (key, start or initializers)",
    "state": "the network's state to begin with",
    "opt_state": "the optimizer's state to begin with",
    "loss_scale": "the loss scale",
}
"""What a person calls the parts of an identity."""


def of_run(step: Any, train_state: Any, batch: Any) -> dict[str, str]:
    """The identity of a run, a short text a part.

    Args:
      step: the step, compiled or not.
      train_state: what it begins with, a named tuple.
      batch: the shapes and dtypes of its batches.
    """
    found = {"program": of_program(step, train_state, batch), "jax": jax.__version__}
    found["platform"] = jax.default_backend()
    fields = train_state._asdict() if hasattr(train_state, "_asdict") else {"state": train_state}
    return found | {name: of_arrays(tree) for name, tree in fields.items() if name not in ("step", "guard")}


def of_program(f: Any, *arguments: Any) -> str:
    """A fingerprint of what a function computes: of its lowered program, in which every constant stands."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)  # wherever they lie
    text = jax.jit(f).lower(*shapes).as_text()
    return hashlib.sha256(_ADDRESS.sub(r"\1", text).encode()).hexdigest()[:16]


def of_arrays(tree: Any) -> str:
    """A checksum of the arrays that this process has for itself; of others, of their shapes."""
    found = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        what = f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}"
        found = zlib.crc32(what.encode(), found)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            continue
        typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        host = np.asarray(jax.random.key_data(leaf) if typed else leaf, order="C")
        found = zlib.crc32(host.reshape(-1).view(np.uint8).data, found)
    return f"{found:08x}"


def differences(before: dict[str, str], now: dict[str, str]) -> str:
    """What a person would say differs, or nothing; another version of JAX alone is no difference."""
    names = [name for name in {**NAMES, **now} if name not in ("jax", "platform") and before.get(name) != now.get(name)]
    if "optimizer" in names and "program" in names:
        names.remove("program")  # of which the optimizer is a part
    text = ", ".join(NAMES.get(name, name) for name in names)
    made = [(before.get(name), now[name]) for name in ("jax", "platform")]
    if text and any(was != now for was, now in made):
        text += f"; it was compiled by JAX {made[0][0]} for {made[1][0]}, now {made[0][1]} for {made[1][1]}, whose"
        text += " programs may differ by themselves"
    return text
