"""Trained parameters from PyTorch and for PyTorch, under its names and in its layouts; PyTorch is never imported.

**Names** follow the tree of params: each chain and each parallel is a `torch.nn.Sequential` (or `ModuleList`), whose
indices count every part, those without parameters too; the parts of a residual are ``branch`` and ``shortcut``; the
copies in a repeat are ``0`` to ``n - 1``; the parts of a tied are ``embedding`` and ``body``; mixed_precision, frozen
and on_first are no modules, and add nothing. So the kernel of the second layer of the branch of a residual that is
fourth in a chain is ``3.branch.1.weight``. From there, ``rename`` takes it to a model's own names.

**Layouts**, ours on the left:

==============  ================================  ==========================================================
layer           ours                              PyTorch's
==============  ================================  ==========================================================
dense           ``kernel (N_in, N_out)``          ``weight (N_out, N_in)``
conv            ``kernel (*K, C_in / g, C_out)``  ``weight (C_out, C_in / g, *K)``
conv_transpose  ``kernel (*K, C_in / g, C_out)``  ``weight (C_in, C_out / g, *K)``, taps reversed
these three     ``bias``                          ``bias``
batch_norm      ``scale``, ``offset``             ``weight``, ``bias``
its state       ``mean``, ``variance``            ``running_mean``, ``running_var``, ``num_batches_tracked``
other norms     ``scale``, ``offset``             ``weight``, ``bias``
prelu           ``slope ()`` or ``(C,)``          ``weight (1,)`` or ``(C,)``
lstm, gru, rnn  ``kernel (C, G H)``               ``weight_ih_l0 (G H, C)``, with gates in PyTorch's order
their state's   ``recurrent_kernel (H, G H)``     ``weight_hh_l0 (G H, H)``
their biases    ``bias``, ``recurrent_bias``      ``bias_ih_l0``, ``bias_hh_l0``
of ``"both"``   ``backward/kernel`` and so on     ``weight_ih_l0_reverse`` and so on
embedding       ``table``                         ``weight``
positions       ``table``                         ``weight``
attention       ``kernel``, ``bias``              ``in_proj_weight``, ``in_proj_bias``
across          ``query_kernel`` with ``kernel``  ``in_proj_weight``, and in the same way their biases
both            ``output_kernel``                 ``out_proj.weight``
its bias        ``output_bias``                   ``out_proj.bias``
weight_norm     ``scale``, ``kernel``             ``parametrizations.weight.original0``, ``original1``
spectral_norm   ``kernel``                        ``parametrizations.weight.original``
its state       ``left``, ``right``               ``parametrizations.weight.0._u``, ``_v``
snake           ``alpha (C,)``                    ``alpha (C,)``
low_rank        its layer's                       ``base_layer.weight`` and so on, as in PEFT
its change      ``low_rank/kernel/down``, ``up``  ``lora_A.weight``, ``lora_B.weight (N_out, r)``
==============  ================================  ==========================================================

Those of weight_norm and spectral_norm are of `torch.nn.utils.parametrizations`. `from_torch` takes the names of the
older `torch.nn.utils.weight_norm` and ``spectral_norm`` just as well: ``weight_g``, ``weight_v`` and ``weight_orig``,
``weight_u``, ``weight_v``.

A layer says its own layout in the field ``torch`` of `layers.About`, which is how one of yours gets in here; its name
means nothing.

**Hyperparameters** are not in the arrays, and some mean other things in PyTorch: its batch norm's ``momentum`` is
1 - ``decay``; the padding of its transposed convolution is converted by `sizes.torch_padding`; and its data are
channels-first, so that its ``Flatten`` runs channel by channel where `layers.flatten` runs position by position. Where
a dense layer follows, put ``lambda x: jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)`` in the chain in flatten's place.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _incoming as incoming
from jaxnet._torch_names import Rename, as_given, count_beside, renamed
from jaxnet.errors import CheckpointError, ConfigError, DTypeError, JaxnetError, named
from jaxnet.layers.inside import entries
from jaxnet.layers.layer import Layer, Params, State, as_layer

__all__ = ["from_torch", "to_torch"]


@named("from_torch")
def from_torch(state_dict: Mapping[str, Any], net: Layer, x: Any, *, rename: Rename = None) -> tuple[Params, State]:
    """Makes the params and the state of a network from a PyTorch model's ``state_dict()``.

    Every array must find its place and every place its array, in shape and dtype; nothing is cast, dropped or left as
    it was drawn. The one exception is ``num_batches_tracked``, which no layer of ours has: it may be there or not.

    What the arrays cannot tell is the order of a flattened image or sequence: PyTorch's ``Flatten`` runs channel by
    channel, `layers.flatten` position by position. Both fit, and the outputs differ. Where a dense layer follows, put
    ``lambda x: jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)`` in flatten's place, and compare one output.

    Args:
      state_dict: names to arrays: PyTorch tensors, numpy or JAX arrays; `safetensors.numpy.load_file` returns one.
      net: the same network, in jaxnet.
      x: an example input, or its `jax.ShapeDtypeStruct`, as for ``net.init``: params have its dtype.
      rename: where the model's modules have names of their own: a mapping from ours, such as
        ``{"0": "encoder", "3.branch": "blocks.0"}``, of which the longest that begins a name at its dots is replaced;
        or a function from our full names to the model's.

    Returns:
      ``(params, state)``, as ``net.init`` returns them.

    Raises:
      CheckpointError: names that are missing or unexpected, arrays of another shape or dtype; all of them at once.
      ConfigError: a layer of the network that does not say how PyTorch keeps its arrays, or a ``rename`` with an entry
        that fits no name, or that gives two arrays one name.
      DTypeError: something that is no mapping, or a tensor that numpy cannot hold.
      DataError: a masked array.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from jaxnet import interop, layers
      >>> net = layers.chain(jnp.tanh, layers.dense(2))
      >>> theirs = {"head.weight": np.ones((2, 3), np.float32), "head.bias": np.zeros(2, np.float32)}
      >>> params, state = interop.from_torch(theirs, net, jnp.ones((1, 3)), rename={"1": "head"})
      >>> params[1]["kernel"].shape
      (3, 2)
    """
    if not isinstance(state_dict, Mapping):
        raise DTypeError(
            f"state_dict must map names to arrays, got {type(state_dict).__name__}; pass model.state_dict(), or "
            f"what safetensors.numpy.load_file returns"
        )
    net = as_layer(net, "net")
    structs = jax.eval_shape(net.init, jax.random.key(0), checks.structs(x))
    convert = functools.partial(_in_torchs_layouts, net)
    wanted = jax.eval_shape(convert, *structs)
    counts = [count for name in wanted if (count := count_beside(name))]
    theirs = renamed([*wanted, *counts], rename)
    given = {name: _on_host(name, value) for name, value in state_dict.items()}
    theirs = {ours: as_given(name, given) for ours, name in theirs.items()}

    missing = [theirs[name] for name in wanted if theirs[name] not in given]
    unexpected = given.keys() - theirs.values()
    mismatched = [
        f"{theirs[name]} is {checks.describe(given[theirs[name]])}, the network has {checks.describe(struct)}"
        for name, struct in wanted.items()
        if theirs[name] in given and checks.describe(given[theirs[name]]) != checks.describe(struct)
    ]
    if missing or unexpected or mismatched:
        lines = [f"the state dict does not fit the network {net.name}:"]
        lines += [f"  missing: {', '.join(missing)}"] * bool(missing)
        lines += [f"  unexpected: {', '.join(sorted(map(str, unexpected)))}"] * bool(unexpected)
        lines += [f"  mismatched: {line}" for line in mismatched]
        lines += ["Other names are given as rename={'ours': 'theirs'}; nothing is cast: convert the arrays, or x."]
        raise CheckpointError("\n".join(lines))
    # The conversion only moves elements, each to one place: its transpose is its inverse.
    arrays = {name: given[theirs[name]] for name in wanted}
    return jax.jit(jax.linear_transpose(convert, *structs))(arrays)


@named("to_torch")
def to_torch(params: Params, state: State, net: Layer, *, rename: Rename = None) -> dict[str, np.ndarray]:
    """Returns a network's arrays as a PyTorch model's ``load_state_dict(strict=True)`` wants them.

    Each is a new array in C order, which is what `safetensors` 0.8.0 needs: it writes others wrong without an error.
    To write a file that PyTorch (``safetensors.torch.load_file``) and others read::

        safetensors.numpy.save_file(interop.to_torch(params, state, net), "net.safetensors")

    and for PyTorch in the same process ``{name: torch.from_numpy(a) for name, a in interop.to_torch(...).items()}``
    (which has no bfloat16: cast those to float32 first, or go through a file).

    Args:
      params: the network's.
      state: the network's.
      net: the network.
      rename: as for `from_torch`: from our names to the model's.

    Returns:
      A dict from the model's names to numpy arrays of the dtypes they had; ``num_batches_tracked``, which PyTorch
      reads only where ``momentum=None``, is 0.

    Raises:
      ConfigError: params or a state of another network, a layer that does not say how PyTorch keeps its arrays, or a
        ``rename`` with an entry that fits no name, or that gives two arrays one name.
      ShapeError: a kernel with another number of axes than its layer's.
      DTypeError: a leaf that is no array.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import interop, layers
      >>> net = layers.chain(layers.conv(8, 3, groups=2), jnp.tanh, layers.batch_norm(scale=False, offset=False))
      >>> params, state = net.init(0, jnp.ones((1, 16, 4)))
      >>> {name: array.shape for name, array in interop.to_torch(params, state, net).items()}
      {'0.weight': (8, 2, 3), '0.bias': (8,), '2.running_mean': (8,), '2.running_var': (8,),
       '2.num_batches_tracked': ()}
    """
    net = as_layer(net, "net")
    params, state = jax.tree.map(lambda leaf: checks.array("params", leaf), (params, state))
    arrays: dict[str, Any] = {}
    ours: list[str] = []

    @jax.jit
    def layouts(params, state):
        found = _in_torchs_layouts(net, params, state)
        ours.extend(found)  # in the network's order, which jit does not keep
        return list(found.values())

    for value, name in zip(layouts(params, state), ours, strict=True):
        arrays[name] = np.array(value, order="C")  # a copy: torch.from_numpy wants to be able to write
        if count := count_beside(name):
            arrays[count] = np.zeros((), np.int64)
    names = renamed(list(arrays), rename)
    return {names[name]: value for name, value in arrays.items()}


def _in_torchs_layouts(net: Layer, params: Params, state: State, path: str = "") -> dict[str, jax.Array]:
    """PyTorch's names and arrays. Elements are moved and nothing else, so that this has an inverse."""
    place = path.rstrip(".") or "the network"
    if net.about.torch or not net.about.parts:
        return _leaves(place, net, params, state, path)
    if net.about.trees == "state":
        if not isinstance(state, dict) or set(state) != {"params", "state"}:
            raise ConfigError(
                f"{place} is a {net.name}, whose state is a dict of params and state, got "
                f"{type(state).__name__}; pass what this network's init returned"
            )
        params, state = state["params"], state["state"]
    if net.about.trees in ("same", "state"):
        return _in_torchs_layouts(net.about.parts[0][1], params, state, path)
    if net.about.trees == "stacked":
        copies = [(str(i), net.about.parts[0][1], *trees) for i, trees in enumerate(_unstacked(place, (params, state)))]
    else:
        below = (_by_label(place, net, name, tree) for name, tree in (("params", params), ("state", state)))
        copies = [(label, part, *trees) for (label, part), *trees in zip(net.about.parts, *below, strict=True)]
    return {
        name: array
        for label, part, p, s in copies
        for name, array in _in_torchs_layouts(part, p, s, f"{path}{label}.").items()
    }


def _leaves(place: str, layer: Layer, params: Params, state: State, path: str) -> dict[str, jax.Array]:
    leaves = {
        "/".join(str(getattr(key, "key", key)) for key in path): leaf
        for tree in (params, state)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if path
    }
    if not layer.about.torch and jax.tree.leaves((params, state)):
        raise ConfigError(
            f"{place} is a layer {layer.name!r}, which does not say how PyTorch keeps its arrays; say it with "
            f"layer.described(torch=((leaf, name, f), ...)), for example ('kernel', 'weight', jnp.transpose), and None "
            f"for f where the layout is the same; or leave the layer out, and convert the parts around it"
        )
    table = [((of,) if isinstance(of, str) else tuple(of), name, into) for of, name, into in layer.about.torch]
    known = [leaf for of, _, _ in table for leaf in of]
    found = {leaf for of, _, _ in table if leaves.keys() >= set(of) for leaf in of}
    if len(leaves) != len(jax.tree.leaves((params, state))) or leaves.keys() != found:
        raise ConfigError(
            f"{place} is a layer {layer.name!r}, whose arrays are {', '.join(known)}, got "
            f"{', '.join(map(str, leaves)) or 'something else'}; pass what this network's init returned"
        )
    return {
        path + name: leaves[of[0]] if into is None else _moved(place, of, [leaves[leaf] for leaf in of], into)
        for of, name, into in table
        if leaves.keys() >= set(of)
    }


def _moved(place: str, names: tuple[str, ...], leaves: list[Any], into: Callable[..., Any]) -> Any:
    """``into(*leaves)``, which may move elements and do nothing else: tried on their numbers."""
    ends = list(itertools.accumulate((math.prod(leaf.shape) for leaf in leaves), initial=0))
    counts = [
        np.arange(start, end, dtype=np.int32).reshape(leaf.shape)
        for start, end, leaf in zip(ends, ends[1:], leaves, strict=False)
    ]
    with jax.ensure_compile_time_eval():
        numbers = np.asarray(jax.jit(into)(*counts))
    if numbers.dtype != np.int32 or not np.array_equal(np.sort(numbers, axis=None), np.arange(ends[-1])):
        raise ConfigError(
            f"the function that takes {' and '.join(map(repr, names))} of {place} into PyTorch's layout must move its "
            f"{ends[-1]} elements, each to one place, and change none; without that there is no way back"
        )
    return into(*leaves)


def _unstacked(place: str, trees: Any) -> list[Any]:
    """The trees of each copy in a repeat."""
    leaves, structure = jax.tree.flatten(trees)
    depths = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
    if len(depths) > 1 or 0 in depths:
        raise ConfigError(
            f"{place} is a repeat, whose arrays are stacked, all to one depth, got depths "
            f"{', '.join(map(str, sorted(depths)))}; pass what this network's init returned"
        )
    n = max(depths, default=0)
    # Split and concatenate are each other's transposes; indexing's is an addition to zeros, which turns -0.0 into 0.0.
    columns = [[part.reshape(part.shape[1:]) for part in jax.lax.split(leaf, (1,) * n)] for leaf in leaves]
    return [structure.unflatten([column[i] for column in columns]) for i in range(n)]


def _by_label(place: str, net: Layer, name: str, tree: Any) -> list[Any]:
    """A container's params, or its state, one a part."""
    if (found := entries(net, tree)) is not None:
        return found
    raise ConfigError(
        f"{place} is a {net.name} of the parts {', '.join(label for label, _ in net.about.parts)}, but its {name} are "
        f"no tuple or dict of as many; pass what this network's init returned"
    )


def _on_host(name: str, value: Any) -> np.ndarray:
    """A tensor of PyTorch's, or whatever numpy reads, as a numpy array."""
    try:
        return incoming.read(value) if hasattr(value, "detach") else checks.unmasked(name, value)
    except JaxnetError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise DTypeError(f"{name} cannot be read as an array: {error}") from error
