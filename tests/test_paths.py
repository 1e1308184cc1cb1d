"""Which leaves are meant: patterns, functions and trees."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers
from jaxnet.errors import ConfigError
from jaxnet.paths import paths, select


class Pair(NamedTuple):
    first: object
    second: object


TREE = {
    "a": (np.ones(2), {"kernel": np.ones((2, 2)), "bias": np.ones(2)}),
    "b": Pair(np.ones(()), None),
    "ab": np.ones(3),
}


def chosen(which):
    picked = select(TREE, which)
    assert jax.tree.structure(picked) == jax.tree.structure(TREE)
    return {path for path, on in zip(jax.tree.leaves(paths(TREE)), jax.tree.leaves(picked), strict=True) if on}


def named(value):
    """What two processes write alike: not so the address of a function, or the order of a set."""
    return "function" if callable(value) else " ".join(sorted(value)) if isinstance(value, set) else str(value)


EVERY = {"a/0", "a/1/bias", "a/1/kernel", "ab", "b/first"}


@pytest.mark.parametrize(
    ("which", "wanted"),
    [
        ("*", EVERY),
        ("a", {"a/0", "a/1/bias", "a/1/kernel"}),  # all below it, and not "ab"
        ("a/*", {"a/0", "a/1/bias", "a/1/kernel"}),
        ("*/kernel", {"a/1/kernel"}),
        ("a/[01]", {"a/0", "a/1/bias", "a/1/kernel"}),
        (["ab", "*bias"], {"ab", "a/1/bias"}),
        (("ab",), {"ab"}),
        ("!a", {"ab", "b/first"}),
        (["a/*", "!*/kernel", "!a/0"], {"a/1/bias"}),
        (lambda path, leaf: leaf.ndim == 2 or path == "b/first", {"a/1/kernel", "b/first"}),
        ({"a": (False, True), "b": False, "ab": np.bool_(True)}, {"a/1/bias", "a/1/kernel", "ab"}),
        (True, EVERY),
        (False, set()),
    ],
    ids=named,
)
def test_select(which, wanted):
    assert chosen(which) == wanted


def test_paths_are_those_of_networks():
    net = layers.chain(layers.residual(layers.chain(layers.dense(2), layers.prelu())), layers.dense(1, bias=False))
    params, _ = net.init(0, jnp.ones((1, 2)))
    assert set(jax.tree.leaves(paths(params))) == {
        "0/branch/0/kernel", "0/branch/0/bias", "0/branch/1/slope", "1/kernel",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (
            "A",
            r"the pattern 'A' fits no leaf; the paths are a/0, a/1/bias, a/1/kernel, ab, b/first; '\*' stands for any",
        ),
        (["ab", "x*"], r"the pattern 'x\*' fits no leaf"),
        ("!x", "the pattern '!x' fits no leaf"),
        (lambda path, leaf: leaf.size, "leaves are chosen by True or False, got 2 for a/0"),
        ({"a": True}, "a tree of bools must be a prefix of the tree"),
        ({"a": 1, "b": True, "ab": True}, "leaves are chosen by True or False, got 1"),
        (None, "a tree of bools must be a prefix of the tree"),
    ],
    ids=named,
)
def test_refused(which, message):
    with pytest.raises(ConfigError, match=message):
        select(TREE, which)
