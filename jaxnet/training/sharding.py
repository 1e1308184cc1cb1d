"""Where arrays live on a mesh of devices: batches over its first axis, parameters everywhere or in pieces."""

import contextlib
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnet.errors import ConfigError, DataError, named
from jaxnet.training import processes
from jaxnet.training.state import copied


class Sharded(NamedTuple):
    """What `sharded` returns."""

    mesh: Mesh
    parameters: bool = False


@named("sharded")
def sharded(mesh: Any) -> Sharded:
    """A mesh among whose devices the parameters and the optimizer's state are shared too, not the batches alone.

    Args:
      mesh: devices, `jax.make_mesh`; its first axis counts.

    Returns:
      What `fit` and `train` take as ``mesh``.

    Raises:
      ConfigError: what is no mesh.

    Example:
      >>> import jax
      >>> from jaxnet import training
      >>> training.sharded(jax.make_mesh((1,), ("data",))).parameters
      True
    """
    return Sharded(automatic(mesh), parameters=True)


def given(mesh: Any) -> Sharded | None:
    """``mesh`` as given by a user: a mesh, a `Sharded`, or None."""
    return mesh if mesh is None or isinstance(mesh, Sharded) else Sharded(automatic(mesh))


def placed(mesh: Any, train_state: Any) -> tuple[Mesh | None, Any, Any]:
    """The mesh of a run, where its state lives there, and a copy of that state in its place."""
    found = given(mesh)
    processes.must_take_part(found and found.mesh)
    if found is None:
        return None, None, copied(train_state)
    placement = of_parameters(found.mesh, train_state, sharded=found.parameters)
    return found.mesh, placement, copied(place("the state to begin with", train_state, placement))


def automatic(mesh: Any) -> Mesh:
    """The mesh with axes along which XLA partitions by itself, whatever kind `jax.make_mesh` gave it."""
    if not isinstance(mesh, Mesh):
        raise ConfigError(f"mesh must be a jax.sharding.Mesh, got {mesh!r}; jax.make_mesh((n,), ('data',))")
    return Mesh(mesh.devices, mesh.axis_names)


def in_use(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """A context for programs over the mesh, in which no mesh of other axes that the caller has set is in their way."""
    none_set = jax.sharding.get_abstract_mesh().empty
    return contextlib.nullcontext() if mesh is None or none_set else jax.set_mesh(mesh)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The first axis of an array in pieces over the first axis of the mesh."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))


def over_batch_if_it_fits(mesh: Mesh, batch_size: int) -> NamedSharding:
    """The batch in pieces if the mesh's first axis divides it, else a copy on every device."""
    return replicated(mesh) if batch_size % mesh.shape[mesh.axis_names[0]] else over_batch(mesh)


def batch_fits(mesh: Mesh, batch_size: int) -> None:
    """Refuses a batch that the mesh's first axis does not divide."""
    devices = mesh.shape[mesh.axis_names[0]]
    if batch_size % devices:
        down = batch_size - batch_size % devices
        sizes = f"{down} or {down + devices}" if down else f"{devices}"
        raise DataError(
            f"a batch of {batch_size} cannot be shared among {devices} devices; a batch_size of {sizes} can"
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


def place(what: str, tree: Any, shardings: Any) -> Any:
    """Puts a tree of arrays, which must be the same on all processes, where its shardings say."""
    if jax.process_count() > 1:
        hint = "give all processes the same key and the same whole arrays; only of an iterable does each have its part"
        processes.agree(what, _crc32(tree), hint)
    return jax.tree.map(put, tree, shardings)


def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Puts an array, the same on all processes, where its sharding says."""
    if sharding.is_fully_addressable or _over_processes(leaf):
        return jax.device_put(leaf, sharding)
    # Over several processes: each has the whole array, and gives its own devices' pieces of it.
    if _is_key(leaf):
        return jax.random.wrap_key_data(put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _crc32(tree: Any) -> int:
    """A checksum of the arrays that this process has for itself."""
    found = 0
    for leaf in jax.tree.leaves(tree):
        if not _over_processes(leaf):
            host = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")
            found = zlib.crc32(f"{host.dtype} {host.shape}".encode(), found)
            found = zlib.crc32(host.reshape(-1).view(np.uint8).data, found)
    return found


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _over_processes(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def place_local_batch(batch: Any, mesh: Mesh) -> Any:
    """A batch, whose first axis is shared among processes, each with its own part of it, on the mesh."""
    over = over_batch(mesh)
    for leaf in jax.tree.leaves(batch):
        batch_fits(mesh.local_mesh, len(leaf))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(over, np.asarray(leaf)), batch)


def own_copy(leaf: Any) -> Any:
    """An array of this process alone, if it has the whole of it; else the array as it is."""
    return leaf.addressable_data(0) if _over_processes(leaf) and leaf.is_fully_replicated else leaf


def whole_here(tree: Any, mesh: Mesh) -> Any:
    """A tree on a mesh of several processes, whole on each device of this process's part of the mesh."""
    if jax.process_count() == 1:
        return tree
    tree = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
    here = replicated(mesh.local_mesh)

    def copy(leaf):
        pieces = [piece.data for piece in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, here, pieces)

    return jax.tree.map(copy, tree)


def of_results(mesh: Mesh | None, placement: Any) -> dict[str, Any]:
    """Where a program's results live: the state where it was, what was measured on every device."""
    return {} if mesh is None else {"out_shardings": (placement, replicated(mesh))}
