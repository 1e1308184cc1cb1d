"""What JAX knows of a value that is divided over devices."""

from typing import Any

import jax
from jax import lax


def varying(value: Any) -> frozenset:
    """The mesh axes over which a value differs from device to device, inside shard_map."""
    kind = jax.typeof(value)
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying  # the name changed in jax 0.10.2


def spread(value: Any, *others: Any) -> Any:
    """``value``, inside shard_map, as varying over all mesh axes over which it or one of ``others`` does."""
    missing = frozenset().union(*map(varying, others)) - varying(value)
    return lax.pcast(value, tuple(missing), to="varying") if missing else value
