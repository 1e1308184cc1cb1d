"""Where arrays live on a mesh of devices, and what the processes that share it must have in common.

Batches lie over the mesh's first axis, parameters everywhere or in pieces. No process may wait for what another never
does, so what one finds out, all do.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnet import _words as words
from jaxnet.errors import ConfigError, DataError, named
from jaxnet.training import nans
from jaxnet.training.state import MOST_BYTES_KEPT, checksum, copied, is_key, nbytes, sound


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


class Place(NamedTuple):
    """Where a run lives, and what becomes of its state from dispatch to dispatch.

    Attributes:
      mesh: the devices; None for JAX's default one.
      of_state: on a mesh, where each leaf of the state lies.
      keeps: whether a dispatch keeps the state that it began with, for which it must be small; else it is given away.
      watches: whether the parameters are looked at; what is not finite from the beginning is meant so, as masks are.
    """

    mesh: Mesh | None
    of_state: Any
    keeps: bool
    watches: bool

    @property
    def undoes(self) -> bool:
        """Whether an update that spoils the parameters can be taken back."""
        return self.keeps and self.watches

    def compiled(self, step: Any) -> Any:
        """A program from a state, and more, to the next state, where that was, and what was measured, everywhere."""
        results = {} if self.mesh is None else {"out_shardings": (self.of_state, replicated(self.mesh))}
        return nans.compiled(step, donate_argnums=() if self.keeps else 0, **results)


def placed(mesh: Any, train_state: Any) -> tuple[Place, Any]:
    """The place of a run, and a copy of its state there."""
    found, of_state = given(mesh), None
    mesh = found and found.mesh
    must_take_part(mesh)
    if found is not None:
        must_agree("the state to begin with", train_state)
        of_state = of_parameters(mesh, train_state, sharded=found.parameters)
        train_state = jax.tree.map(put, train_state, of_state)
    train_state = copied(train_state)
    with in_use(mesh):
        return Place(mesh, of_state, nbytes(train_state) <= MOST_BYTES_KEPT, sound(train_state)), train_state


def automatic(mesh: Any) -> Mesh:
    """The mesh with axes along which XLA partitions by itself, whatever kind `jax.make_mesh` gave it."""
    if not isinstance(mesh, Mesh):
        raise ConfigError(f"mesh must be a jax.sharding.Mesh, got {words.came(mesh)}; jax.make_mesh((n,), ('data',))")
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


def must_agree(what: str, tree: Any) -> None:
    """Refuses arrays that are not the same on all processes; those that lie over several are left out."""
    if jax.process_count() > 1:
        hint = "give all processes the same key and the same whole arrays; only of an iterable does each have its part"
        agree(what, checksum([leaf for leaf in jax.tree.leaves(tree) if not _over_processes(leaf)]), hint)


def everywhere(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays, the same on all processes, on every device of a mesh; without one, on JAX's default device."""
    if mesh is None:
        return jax.tree.map(_here, tree)
    return jax.tree.map(lambda leaf: put(leaf, replicated(mesh)), tree)


def _here(leaf: Any) -> jax.Array:
    """On JAX's default device, copied once at most, where `jnp.asarray` makes two copies of NumPy's array on a CPU.

    JAX takes what is aligned to 64 bytes as it is: so a memory map to read from is never copied, and what its owner
    could still write to is copied first.
    """
    if isinstance(leaf, np.ndarray) and leaf.flags.writeable and leaf.ctypes.data % 64 == 0:
        leaf = leaf.copy()
    return jax.device_put(leaf)


def of_its_own(leaf: Any) -> Any:
    """A loader's array, which it may fill anew once the next batch is wanted; JAX takes or copies it only later."""
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Puts an array, the same on all processes, where its sharding says."""
    if sharding.is_fully_addressable or _over_processes(leaf):
        return jax.device_put(leaf, sharding)
    # Over several processes: each has the whole array, and gives its own devices' pieces of it.
    if is_key(leaf):
        return jax.random.wrap_key_data(put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


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


def must_take_part(mesh: Mesh | None) -> None:
    """Refuses to train with a part of the processes: those left out would wait for ever, or train for themselves."""
    taking_part = set() if mesh is None else {device.process_index for device in mesh.devices.flat}
    if jax.process_count() > 1 and len(taking_part) < jax.process_count():
        came = "there is no mesh" if mesh is None else f"the mesh has devices of {len(taking_part)} of them"
        raise ConfigError(
            f"{jax.process_count()} processes must train together, and {came}; give "
            f"mesh=jax.make_mesh((jax.device_count(),), ('data',))"
        )


def agree(what: str, value: int, hint: str) -> None:
    """Refuses, on all processes at once, a ``value`` below 2**32 that is not that of process 0."""
    if jax.process_count() == 1:
        return
    values = multihost_utils.process_allgather(np.uint32(value))
    differ = np.flatnonzero(values != values[0])
    if differ.size:
        raise ConfigError(f"{what} of process {differ[0]} is not that of process 0; {hint}")


def any_process(*flags: bool) -> tuple[bool, ...]:
    """Whether each is so on any process, so that all do the same."""
    if jax.process_count() == 1:
        return flags
    return tuple(multihost_utils.process_allgather(np.array(flags)).any(0).tolist())


@contextlib.contextmanager
def together(elsewhere: Exception) -> Iterator[None]:
    """Waits until every process is here; all raise if one does, so that none waits for one that failed.

    Args:
      elsewhere: what to raise where it went well.
    """
    trouble: Exception | None = None
    try:
        yield
    except Exception as error:
        trouble = error
    (failed,) = any_process(trouble is not None)
    if failed:
        raise trouble or elsewhere
