"""Where arrays live on a mesh of devices: batches over its first axis, parameters everywhere or in pieces."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnet.errors import ConfigError, DataError


def automatic(who: str, mesh: Any) -> Mesh:
    """The mesh with axes along which XLA partitions by itself, whatever kind `jax.make_mesh` gave it."""
    if not isinstance(mesh, Mesh):
        raise ConfigError(f"{who}: mesh must be a jax.sharding.Mesh, got {mesh!r}; jax.make_mesh((n,), ('data',))")
    return Mesh(mesh.devices, mesh.axis_names)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The first axis of an array in pieces over the first axis of the mesh."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))


def batch_fits(who: str, mesh: Mesh, batch_size: int) -> None:
    """Refuses a batch that the mesh's first axis does not divide."""
    devices = mesh.shape[mesh.axis_names[0]]
    if batch_size % devices:
        down = batch_size - batch_size % devices
        sizes = f"{down} or {down + devices}" if down else f"{devices}"
        raise DataError(
            f"{who}: a batch of {batch_size} cannot be shared among {devices} devices; a batch_size of {sizes} can"
        )


def of_parameters(mesh: Mesh, tree: Any, *, sharded: bool) -> Any:
    """A sharding a leaf: a copy on every device, or, fully sharded, in pieces along the longest axis that divides.

    Arrays without such an axis, and those of less than a thousand elements, stay whole.
    """
    devices = mesh.shape[mesh.axis_names[0]]

    def of_leaf(leaf):
        shape = np.shape(leaf)
        axes = [axis for axis, size in enumerate(shape) if size % devices == 0]
        if not sharded or not axes or np.prod(shape) < 1000:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, mesh.axis_names[0]))

    return jax.tree.map(of_leaf, tree)


def place(tree: Any, shardings: Any) -> Any:
    """Puts a tree of arrays, the same on all processes, where its shardings say."""
    return jax.tree.map(_put, tree, shardings)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    # Over several processes: each has the whole array, and gives its own devices' pieces of it.
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        implementation = jax.random.key_impl(leaf)
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding), impl=implementation)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def place_local_batch(batch: Any, mesh: Mesh) -> Any:
    """A batch, whose first axis is shared among processes, each with its own part of it, on the mesh."""
    sharding = over_batch(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)
