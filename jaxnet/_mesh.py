"""What JAX knows of a value that is divided over devices."""

from typing import Any

import jax


def varying(value: Any) -> frozenset:
    """The mesh axes over which a value differs from device to device, inside shard_map."""
    kind = jax.typeof(value)
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying  # the name changed in jax 0.10.2
