"""The state that a step hands to the next: what it must keep of the one before, and which layer did not."""

from typing import Any

import jax

from jaxnet.errors import ConfigError, located, named
from jaxnet.layers.inside import entries
from jaxnet.layers.layer import Layer, State
from jaxnet.layers.protocol import refuse_swapped, same_structs, struct

MOST = 4
"""Leaves that an error names."""


def check_next(net: Layer, y: Any, new: State, state: State) -> None:
    """Refuses a state that cannot take the place of the one before, by the path of the layer that returned it.

    Args:
      net: the network.
      y: its output.
      new: the state that it returned.
      state: the state that it was given.

    Raises:
      ConfigError: they differ in structure, shapes or dtypes; a weak type is no difference.
    """
    if same_structs(new, state):
        return
    with named(net.name):
        refuse_swapped(y, new, state)
    _refuse(net, new, state)


def _refuse(net: Layer, new: State, state: State) -> None:
    about = net.about
    if about.parts and about.trees in ("same", "stacked"):
        with located(net.name):
            _refuse(about.parts[0][1], new, state)
    came, were = (entries(net, tree) if about.parts and about.trees == "apart" else None for tree in (new, state))
    for (label, part), now, before in zip(about.parts, came or (), were or (), strict=bool(came and were)):
        if not same_structs(now, before):
            with located(f"{net.name}[{label}]" if label.isdecimal() else f"{net.name}.{label}"):
                _refuse(part, now, before)
    with named(net.name):
        raise ConfigError(
            f"apply returned a state that is not as init made it: {_differences(new, state)}; it goes into the next "
            f"step: keep structure, shapes and dtypes, or begin with these in init"
        )


def _differences(new: State, state: State) -> str:
    """What differs, leaf by leaf."""
    came, wanted = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (new, state)
    )
    said = []
    for place in {**wanted, **came}:
        name = place or "it is"
        if place not in came:
            said.append(f"{name} is missing" if place else f"no {_described(wanted[place])}")
        elif place not in wanted:
            said.append(f"{name} {_described(came[place])} is new")
        elif struct(came[place]) != struct(wanted[place]):
            said.append(f"{name} {_described(came[place])}, wanted {_described(wanted[place])}")
    if not said:
        said = [f"a {type(new).__name__}, wanted a {type(state).__name__} of the same"]
    return ", ".join(said[:MOST]) + (f" and {len(said) - MOST} more" if len(said) > MOST else "")


def _described(leaf: Any) -> str:
    found = struct(leaf)
    return found.__name__ if isinstance(found, type) else f"{found[1]} {found[0]}"
