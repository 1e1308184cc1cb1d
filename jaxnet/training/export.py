"""A trained network as one file of StableHLO, which runs without jaxnet: `jax.export` with the weights inside."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _optional as optional
from jaxnet import _words as words
from jaxnet.errors import CheckpointError, ConfigError, DTypeError, JaxnetError, ShapeError, named
from jaxnet.layers.layer import Layer, Params, State, as_layer, ran
from jaxnet.training import _atomic
from jaxnet.training.state import refuse_exchanged

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""What an artifact can be compiled for."""

# An artifact is what `jax.export` writes, its SHA-256, and this. They stand at the end, so that `jax.export` itself,
# which reads a flatbuffer from its beginning, can read the whole.
_MAGIC = b"\njaxnet.export 1\n"
_TAIL = hashlib.sha256().digest_size + len(_MAGIC)


@named("export")
def export(
    net: Layer,
    params: Params,
    state: State,
    x: Any,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    path: str | os.PathLike[str] | None = None,
) -> bytes:
    """Compiles a network's evaluation, weights included, to an artifact for any batch size, and for any length.

    The artifact is the function x -> y of ``net.apply(params, state, x, train=False)`` and its derivative by x, as
    StableHLO; one artifact serves all ``platforms``. `load_exported` loads it; where there is no jaxnet, so does
    ``jax.export.deserialize(bytearray(artifact)).call``. It holds the weights twice, for the function and for its
    derivative. JAX promises to read it in versions up to six months newer than the one that wrote it, so keep the
    parameters too.

    Args:
      net: the network.
      params: its parameters.
      state: its state.
      x: an example input (batch, ...), or its `jax.ShapeDtypeStruct`, or a tuple, list or dict of those with one batch
        size; that does not matter. Other sizes are fixed, but those that are symbolic in the struct
        (`jax.export.symbolic_shape`): ``4*t`` is any multiple of 4.
      platforms: of "cpu", "cuda", "rocm" and "tpu", what it shall run on.
      path: a file to write, too; it is complete or not there, whatever interrupts the writing.

    Returns:
      The artifact.

    Raises:
      ConfigError: an unknown platform, or a network that needs the batch size as a number in Python (a branch on
        ``x.shape[0]``, say), or that returns something else than arrays in tuples, lists and dicts.
      ShapeError: x does not fit the network, or has no batch axis.
      DTypeError: x, or a leaf of ``params`` or ``state``, is no array.
      DependencyError: flatbuffers is not installed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers, training
      >>> net = layers.chain(layers.dense(8), jnp.tanh, layers.dense(3))
      >>> params, state = net.init(0, jnp.ones((1, 4)))
      >>> artifact = training.export(net, params, state, jnp.ones((1, 4)))
      >>> training.load_exported(artifact)
      ExportedNet(shape=(None, 4), dtype=dtype('float32'), platforms=('cpu', 'cuda', 'tpu'))
      >>> training.load_exported(artifact)(jnp.ones((5, 4))).shape
      (5, 3)
    """
    jax_export = _jax_export()
    platforms = _checked_platforms(platforms)
    if path is not None:  # before the work, not after it
        path = checks.path("path", path)
        _atomic.try_file(path)
    refuse_exchanged(params, x)
    structs = checks.structs(x)
    leaves = jax.tree.leaves(structs)
    if not all(struct.shape for struct in leaves):
        raise ShapeError("x must have the axes (batch, ...), got a scalar")
    # By way of the host: the program is for one device, however the arrays are spread.
    params, state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(checks.array("params", leaf))), (params, state))
    net = as_layer(net, "net")

    def with_batch(size):
        return jax.tree.map(lambda struct: jax.ShapeDtypeStruct((size, *struct.shape[1:]), struct.dtype), structs)

    def evaluate(x):
        return ran(net.apply(params, state, x, train=False))[0]

    # What is wrong with the network, its params or x shows with a batch size that is a number.
    jax.eval_shape(evaluate, with_batch(2))
    sizes = [size for struct in leaves for size in struct.shape]
    scopes = [size.scope for size in sizes if jax_export.is_symbolic_dim(size)]  # one program, one scope
    (batch,) = jax_export.symbolic_shape("batch", scope=scopes[0] if scopes else None)
    try:
        exported = jax_export.export(jax.jit(evaluate), platforms=platforms)(with_batch(batch))
        payload = bytes(exported.serialize(vjp_order=1))
    except JaxnetError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the network {net.name} cannot be exported for every batch size: "
            f"{(str(error).strip() or type(error).__name__).splitlines()[0]}; x.shape[0] "
            f"{'and every symbolic size stand' if scopes else 'stands'} for any number here, so no branch, loop or "
            f"float() in Python can depend on it, and the outputs must be "
            f"arrays in tuples, lists and dicts"
        ) from error
    artifact = payload + hashlib.sha256(payload).digest() + _MAGIC
    if path is not None:
        _atomic.write(path, artifact)
    return artifact


@dataclass(frozen=True)
class ExportedNet:
    """A network out of an artifact, by `load_exported`: call it with a batch, also under `jax.jit` and `jax.grad`.

    First derivatives in reverse mode (`jax.grad`, `jax.vjp`) are all that an artifact holds, and `jax.vmap` cannot look
    into one.

    Attributes:
      shape: of its input, with None for the batch size, and for any other that it leaves open; of an input that is a
        tree, one such tuple an array.
      dtype: of its input, likewise.
      platforms: what it can run on.
    """

    shape: Any
    dtype: Any
    platforms: tuple[str, ...]
    _call: Callable[[jax.Array], Any] = field(repr=False)

    @named("ExportedNet")
    def __call__(self, x: Any) -> Any:
        """Computes the outputs for a batch of at least one example.

        Raises:
          ShapeError: x has another shape than ``shape``, or is another tree.
          DTypeError: x has another dtype than ``dtype``, or is no array.
        """
        shapes, treedef = jax.tree.flatten(self.shape, is_leaf=_is_shape)
        given, came = jax.tree.flatten(x)
        if came != treedef:
            raise ShapeError(f"x must be a tree {treedef}, got {came}; pass what the network takes")
        wanted = list(zip(shapes, jax.tree.leaves(self.dtype), strict=True))
        leaves = [_fitting(leaf, *want) for leaf, want in zip(given, wanted, strict=True)]
        try:
            return self._call(treedef.unflatten(leaves))
        except ValueError as error:
            if all(None not in shape[1:] for shape in shapes) and len(leaves) == 1:
                raise
            raise ShapeError(
                f"x of shape {', '.join(str(leaf.shape) for leaf in leaves)} does not fit the sizes, one batch "
                f"size among them, that the network was exported for: {str(error).splitlines()[0]}"
            ) from error


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple) and all(size is None or isinstance(size, int) for size in node) and node != ()


def _fitting(x: Any, shape: tuple[int | None, ...], dtype: np.dtype) -> jax.Array:
    """An array of the input, if it has its shape and dtype."""
    x = checks.array("x", x)
    fits = [wanted in (None, got) for wanted, got in zip(shape, x.shape, strict=False)]
    if x.ndim != len(shape) or not all(fits) or x.shape[0] == 0:
        wanted = ", ".join(("batch", *("any" if size is None else str(size) for size in shape[1:])))
        raise ShapeError(
            f"x must have the shape ({wanted}), batch >= 1, got {x.shape}"
            + ("; add the batch axis: x[None]" if x.shape == shape[1:] else "")
        )
    if x.dtype != dtype:
        narrow = jax.dtypes.canonicalize_dtype(dtype) != dtype
        hint = "jax.config.update('jax_enable_x64', True)" if narrow else f"x.astype({dtype.name!r})"
        raise DTypeError(f"x must be {dtype}, got {x.dtype}; {hint}")
    return x


@named("load_exported")
def load_exported(source: bytes | bytearray | str | os.PathLike[str]) -> ExportedNet:
    """Loads a network that `export` wrote.

    An artifact is code: it is compiled and run. Its checksum tells damage from chance, not from malice. Load none
    whose writer you would not let run a program on your machine.

    Args:
      source: the artifact's bytes, or the path of its file.

    Returns:
      An `ExportedNet`, a function of a batch, with its input's ``shape`` and ``dtype``.

    Raises:
      CheckpointError: no artifact of `export`, a part of one, a damaged one, or one that this version of JAX cannot
        read any more (or yet).
      DTypeError: ``source`` is neither bytes nor a path.
      ConfigError: a path that no file of this machine can have.
      DependencyError: flatbuffers is not installed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers, training
      >>> double = layers.chain(lambda x: 2 * x)
      >>> artifact = training.export(double, ((),), ((),), jax.ShapeDtypeStruct((1, 2), jnp.float32))
      >>> f = training.load_exported(artifact)
      >>> jax.grad(lambda x: f(x).sum())(jnp.zeros((1, 2)))
      Array([[2., 2.]], dtype=float32)
    """
    jax_export = _jax_export()
    if isinstance(source, (bytes, bytearray)):
        artifact, name = bytes(source), "the artifact"
    elif isinstance(source, (str, os.PathLike)):
        path, name = checks.path("source", source), os.fspath(source)
        if not path.is_file():
            what = "is a directory" if path.is_dir() else "does not exist"
            raise CheckpointError(f"{name} {what}; wanted the file that training.export wrote, with path=")
        artifact = path.read_bytes()
    else:
        raise DTypeError(f"source must be bytes or a path, got {type(source).__name__}")
    payload, digest, magic = artifact[:-_TAIL], artifact[-_TAIL : -len(_MAGIC)], artifact[-len(_MAGIC) :]
    if magic != _MAGIC:
        raise CheckpointError(
            f"{name} ({len(artifact)} bytes) does not end as an artifact of training.export does: it is "
            f"something else, or was cut off; copy it again, or export the network again"
        )
    if hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"{name} is damaged, its checksum differs; copy it again, or export the network again")
    try:
        exported = jax_export.deserialize(bytearray(payload))
    except Exception as error:
        raise CheckpointError(
            f"jax {jax.__version__} cannot read {name}, which is undamaged: {error}; export the network again "
            f"with the version of jax that shall load it"
        ) from error
    ((x,), _) = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    shape = jax.tree.map(
        lambda x: (None, *(None if jax_export.is_symbolic_dim(size) else size for size in x.shape[1:])), x
    )
    return ExportedNet(shape, jax.tree.map(lambda x: np.dtype(x.dtype), x), exported.platforms, jax.jit(exported.call))


def _jax_export() -> Any:
    optional.load("jax.export", "flatbuffers")
    from jax import export as jax_export

    return jax_export


def _checked_platforms(platforms: Any) -> tuple[str, ...]:
    if isinstance(platforms, str) or not isinstance(platforms, Sequence) or not platforms:
        raise ConfigError(f"platforms must be a sequence such as ('cpu', 'cuda'), got {words.came(platforms)}")
    checked = tuple(checks.choice("a platform", platform, PLATFORMS) for platform in platforms)
    if len(set(checked)) != len(checked):
        raise ConfigError(f"platforms must differ, got {words.came(platforms)}")
    return checked
