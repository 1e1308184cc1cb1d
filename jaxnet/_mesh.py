"""What JAX knows of a value that is divided over devices."""

from typing import Any

import jax


def varying(value: Any) -> frozenset:
    """The mesh axes over which a value differs from device to device, inside shard_map."""
    kind = jax.typeof(value)
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying  # the name changed in jax 0.10.2


def alike(*values: Any) -> list[Any]:
    """The values, each varying over all mesh axes that any of them varies over, inside shard_map; None stays None."""
    every = frozenset().union(*(varying(v) for v in values if v is not None))
    return [None if v is None else jax.lax.pcast(v, tuple(every - varying(v)), to="varying") for v in values]
