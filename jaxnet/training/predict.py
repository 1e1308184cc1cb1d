"""What a trained network says of new examples, in batches."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxnet import _checks as checks
from jaxnet import _incoming as incoming
from jaxnet import _words as words
from jaxnet import data as data_module
from jaxnet.errors import DTypeError, ShapeError, named
from jaxnet.layers.layer import Params, State, as_layer, ran
from jaxnet.training import devices
from jaxnet.training.sources import Source, Stream, in_full
from jaxnet.training.state import is_key, refuse_exchanged

Batch = tuple[Any, int]
"""A tree of arrays, filled up to the size of the program, and how many examples of it are meant."""


@named("predict")
def predict(net: Any, params: Params, state: State, x: Any, *, batch_size: int = 256, mesh: Any = None) -> Any:
    """The predictions of a network in evaluation, computed batch by batch and gathered on the host.

    One program computes all batches: a smaller last one is filled with its last example, and what that predicts is cut
    off. The device holds two batches and their predictions, whatever the number of examples, and x itself only if it
    lies there already. A second call with the same network compiles nothing, if its batches are of the same size (fewer
    examples than ``batch_size`` are one of their own).

    Args:
      net: a `Layer`.
      params: its parameters.
      state: its state.
      x: an array with one example an entry of its first axis, or a tree of such arrays, of any library; or batches of
        them, inputs without targets: an iterator, a loader, or a `stream` of either. Of a loader of pairs give
        ``(x for x, target in loader)``. A list is a tree of arrays; to have it mean batches, give ``iter(batches)``.
      batch_size: B, examples at once, of arrays.
      mesh: devices over whose first axis to share each batch. Several processes make the same call, each with the
        whole arrays, and get all predictions; of batches, each process gets the predictions of its own.

    Returns:
      Of arrays, what the network returns, as NumPy arrays with one entry an example on their first axes. Of batches, an
      iterator that predicts as it is read, one such result a batch: ``numpy.concatenate(list(...))`` joins them.

    Raises:
      ConfigError: what is no network or size.
      DataError: arrays of different lengths, or no batches.
      DTypeError: what is no array of numbers.
      ShapeError: x that does not fit the network, or a prediction without an entry an example. Not finite values are
        predicted from as they are.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from jaxnet import layers, training
      >>> net = layers.chain(layers.dense(8), jnp.tanh, layers.dense(3))
      >>> params, state = net.init(0, jnp.ones((1, 4)))
      >>> training.predict(net, params, state, np.ones((1000, 4), np.float32)).shape
      (1000, 3)
      >>> batches = (np.ones((size, 4), np.float32) for size in (32, 32, 7))
      >>> [len(y) for y in training.predict(net, params, state, batches)]
      [32, 32, 7]
    """
    net = as_layer(net, "net")
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    refuse_exchanged(params, x)
    many = _are_batches(x)
    if mesh is not None:
        mesh = devices.automatic(mesh)
        if many and jax.process_count() > 1:  # none waits for another's batches
            params, state = devices.whole_here((params, state), mesh)
            mesh = mesh.local_mesh
    # JAX keeps what it compiles for this function, weakly; what is returned unchanged of the state is not copied.
    program = jax.jit(net.apply, static_argnames="train")
    weights = jax.tree.map(lambda leaf: _on(mesh, checks.array("params", leaf)), (params, state))

    def compute(batch: Any) -> Any:
        with devices.in_use(mesh):
            y, _ = ran(program(*weights, batch, train=False))
            if mesh is None or jax.process_count() == 1:
                return y
            return jax.jit(_itself, out_shardings=devices.replicated(mesh))(y)

    if many:
        stream = in_full(x if isinstance(x, Stream) else Stream(x))
        source = Source(stream.batches, stream.steps_per_epoch, pick=stream.pick, goes_on=False)
        return _ahead(compute, _of_source(source, mesh))
    return _of_arrays(compute, x, batch_size, mesh)


def _of_arrays(compute: Callable[[Any], Any], x: Any, batch_size: int, mesh: Mesh | None) -> Any:
    names, leaves, treedef = _flat(x)
    n = _length(names, leaves)
    size = _fitting(min(batch_size, max(n, 1)), mesh)
    narrowed: dict[str, np.dtype] = {}

    def batches() -> Iterator[Batch]:
        for start in range(0, max(n, 1), size):  # of no examples, one batch of none
            some = _batch(names, [leaf[start : start + size] for leaf in leaves], size, narrowed, mesh)
            if not start:
                checks.warn_of_narrowed(narrowed)
            yield treedef.unflatten(some), min(size, n - start)

    whole, done = None, 0
    for part in _ahead(compute, batches()):
        if whole is None:
            whole = jax.tree.map(lambda leaf: np.empty((n, *leaf.shape[1:]), leaf.dtype), part)
        count = min(size, n - done)
        jax.tree.map(lambda all, some, at=slice(done, done + count): all.__setitem__(at, some), whole, part)
        done += count
    return whole


def _of_source(source: Source, mesh: Mesh | None) -> Iterator[Batch]:
    size = 0
    narrowed: dict[str, np.dtype] = {}
    for number, given in enumerate(source.whole_epoch(0)):
        with named(f"predict: batch {number}"):
            x = given if source.pick is None else source.picked(given)[0]
            names, leaves, treedef = _flat(x)
            n = _length(names, leaves)
            size = _fitting(max(size, n, 1), mesh)  # smaller ones are filled up to the largest so far
            batch = treedef.unflatten(_batch(names, leaves, size, narrowed, mesh))
        if not number:
            checks.warn_of_narrowed(narrowed)
        yield batch, n


def _ahead(compute: Callable[[Any], Any], batches: Iterable[Batch]) -> Iterator[Any]:
    """The predictions of batches on the host, each fetched while the next one is computed."""
    with named("predict"):
        before = None
        for batch, count in batches:
            now = compute(batch), len(jax.tree.leaves(batch)[0]), count
            if before is not None:
                yield _on_host(*before)
            before = now
        if before is not None:
            yield _on_host(*before)


def _on_host(y: Any, size: int, count: int) -> Any:
    for leaf in jax.tree.leaves(y):
        if not leaf.ndim or leaf.shape[0] != size:
            raise ShapeError(
                f"of {size} examples the network predicts {checks.describe(y)}; each array must have one entry an "
                f"example on its first axis, or the batches' cannot be joined; of a single example give x[None]"
            )
    return jax.tree.map(lambda leaf: np.array(leaf[:count]), jax.device_get(y))


def _are_batches(x: Any) -> bool:
    """Whether x is an iterable of batches, and no array or tree of arrays."""
    if isinstance(x, Stream):
        return True
    array = isinstance(x, (str, bytes)) or any(hasattr(x, name) for name in ("shape", "__array__", "__dlpack__"))
    leaf = jax.tree_util.all_leaves([x])
    return leaf and not array and (hasattr(x, "__iter__") or callable(x))


def _flat(x: Any) -> tuple[list[str], list[Any], Any]:
    """The leaves of an input, in whatever library they are, with their names; and its structure."""
    found, treedef = jax.tree_util.tree_flatten_with_path(x, is_leaf=incoming.is_nested_numbers)
    if not found:
        raise DTypeError(f"x must be an array, a tree of arrays or an iterable of batches, got {words.came(x)}")
    names = [f"x{jax.tree_util.keystr(path)}" for path, _ in found]
    return names, [incoming.host(name, leaf) for name, (_, leaf) in zip(names, found, strict=True)], treedef


def _length(names: list[str], leaves: list[Any]) -> int:
    """The number of examples, which may be 0."""
    if any(leaf.ndim == 0 or len(leaf) for leaf in leaves):
        data_module.check_lengths(leaves, names)
    return len(leaves[0])


def _fitting(size: int, mesh: Mesh | None) -> int:
    return size if mesh is None else size + -size % mesh.shape[mesh.axis_names[0]]


def _batch(names: list[str], leaves: list[Any], size: int, narrowed: dict[str, np.dtype], mesh: Mesh | None) -> Any:
    """Leaves of at most ``size`` examples filled up to as many, on the device, in dtypes that JAX keeps."""
    over = None if mesh is None else devices.over_batch(mesh)
    placed = []
    for name, leaf in zip(names, leaves, strict=True):
        leaf = leaf if isinstance(leaf, jax.Array) else checks.host_array(name, leaf, narrowed)
        leaf = devices.of_its_own(_filled(leaf, size))
        placed.append(jax.device_put(leaf) if over is None else devices.put(leaf, over))
    return placed


def _filled(leaf: Any, size: int) -> Any:
    """With the last example again and again; of none, with zeros."""
    if len(leaf) == size:
        return leaf
    if is_key(leaf):
        return leaf[np.minimum(np.arange(size), len(leaf) - 1)]
    like = jnp if isinstance(leaf, jax.Array) else np
    last = leaf[-1:] if len(leaf) else like.zeros((1, *leaf.shape[1:]), leaf.dtype)
    return like.concatenate([leaf, like.repeat(last, size - len(leaf), axis=0)])


def _itself(tree: Any) -> Any:
    return tree


def _on(mesh: Mesh | None, leaf: jax.Array) -> jax.Array:
    """An array of the weights on the mesh: where it is there, as it lies, in pieces too, else everywhere."""
    if mesh is None or leaf.sharding.device_set == set(mesh.devices.flat):
        return leaf
    return devices.put(leaf, devices.replicated(mesh))
