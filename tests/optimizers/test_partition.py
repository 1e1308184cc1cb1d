"""Groups of parameters: each as if it were alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet import optimizers
from jaxnet.errors import ConfigError, ShapeError

PARAMS = {
    "body": [
        {"kernel": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "bias": jnp.ones(3)},
        (),
        {"slope": jnp.float32(0.3)},
    ],
    "head": {"kernel": jnp.linspace(0.5, 2.0, 3)},
}


def run(optimizer, params, steps=5):
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda p: jnp.sin(2 * p) + 0.1, params)
        updates, state = optimizer.update(grads, state, params)
        return optimizers.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params


def test_every_group_is_as_it_would_be_alone():
    rules = {"*bias": optimizers.sgd(0.5), "body": optimizers.adamw(0.01), "head": optax.rmsprop(0.1)}
    with jax.numpy_dtype_promotion("standard"):
        found = run(optimizers.partition(rules), PARAMS)
        bias = run(rules["*bias"], PARAMS["body"][0]["bias"])
        rest = run(rules["body"], {"kernel": PARAMS["body"][0]["kernel"], "slope": PARAMS["body"][2]["slope"]})
        head = run(rules["head"], PARAMS["head"])
    wanted = {"body": [{"kernel": rest["kernel"], "bias": bias}, (), {"slope": rest["slope"]}], "head": head}
    chex.assert_trees_all_equal(found, wanted)


def test_a_clip_inside_is_of_its_group_alone_and_none_leaves_a_group_as_it_is():
    clipped = optimizers.chain(optimizers.clip_by_global_norm(1.0), optimizers.sgd(1.0))
    grads = jax.tree.map(lambda p: jnp.full_like(p, 100.0), PARAMS)
    optimizer = optimizers.partition({"body": None, "*": clipped})
    updates, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(jnp.linalg.norm(updates["head"]["kernel"]), 1.0, rtol=1e-6)
    assert all(not jnp.any(leaf) for leaf in jax.tree.leaves(updates["body"]))
    assert not jax.tree.leaves(state[0])


def test_the_first_group_that_fits_has_a_leaf_and_trees_choose_too():
    mine = {"body": [True, False, False], "head": False}
    pairs = [(mine, optimizers.sgd(1.0)), (lambda path, leaf: leaf.ndim < 2, optimizers.sgd(0.0))]
    optimizer = optimizers.partition(pairs)
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["body"][0]["kernel"], -PARAMS["body"][0]["kernel"])
    assert not jnp.any(updates["head"]["kernel"])


LABELS = {"body": ["slow", (), {"slope": "still"}], "head": {"kernel": "fast"}}  # the first for a kernel and a bias


def test_labels_are_those_of_optax():
    """`optax.partition`, whose older name is `multi_transform`."""
    rules = {"fast": optimizers.adam(0.1), "slow": optimizers.adamw(0.01), "still": optimizers.sgd(0.0)}
    wanted = run(optax.partition(rules, LABELS), PARAMS)
    assert (wanted["body"][0]["bias"] != PARAMS["body"][0]["bias"]).all()
    for given in (LABELS, lambda params: jax.tree.map(lambda _: "fast", params) | {"body": LABELS["body"]}):
        chex.assert_trees_all_equal(run(optimizers.partition(rules | {"still": None}, given), PARAMS), wanted)
    read = jax.tree.map(lambda label: "".join(list(label)), LABELS)  # equal, but not the same objects
    chex.assert_trees_all_equal(run(optimizers.partition(rules, read), PARAMS), wanted)
    spare = {"none here": optimizers.sgd(0.1), "body": optimizers.sgd(1.0), "head": None}
    found, _ = (rule := optimizers.partition(spare, lambda params: {name: name for name in params})).update(
        PARAMS, rule.init(PARAMS), PARAMS
    )
    np.testing.assert_array_equal(found["body"][2]["slope"], -PARAMS["body"][2]["slope"])


@pytest.mark.parametrize(
    ("groups", "labels", "message"),
    [
        pytest.param(
            {"slow": None, "fast": None},
            {"body": "slow", "head": {"kernel": "fats"}},
            "partition: the label 'fats' of head/kernel is for no group; the groups are 'slow', 'fast'",
            id="no-such-group",
        ),
        pytest.param(
            {"a": None}, jnp.ones(2), r"the label Array\(.*is for no group; the groups are 'a'", id="an-array"
        ),
        pytest.param(
            {"a": None}, lambda params: "b", "the label 'b' is for no group", id="no-such-group-by-a-function"
        ),
        pytest.param(
            {"slow": None, "fast": None}, {"body": "slow", "head": "slow"}, "no leaf has the label 'fast'", id="no-leaf"
        ),
        pytest.param({"a": None}, {"body": "a"}, "a tree of labels must be a prefix of the tree, got ", id="no-prefix"),
        pytest.param([("a", None)], "a", "with labels, groups must map labels to optimizers, got", id="pairs"),
    ],
)
def test_labels_that_make_no_sense_are_refused(groups, labels, message):
    with pytest.raises(ConfigError, match=message):
        optimizers.partition(groups, labels).init(PARAMS)


def test_extra_arguments_reach_those_that_take_them():
    optimizer = optimizers.partition({"head": optax.contrib.reduce_on_plateau(), "*": optimizers.sgd(0.1)})
    with jax.numpy_dtype_promotion("standard"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, value=jnp.float32(1.0))
        with pytest.raises(
            ConfigError, match=r"partition\['head'\].*needs value.*call update\(gradients, state, params, "
        ):
            optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizers.partition({}), "partition: groups must map which leaves to their optimizer, got {}"),
        (lambda: optimizers.partition(["*"]), "groups must map which leaves to their optimizer"),
        (lambda: optimizers.partition({"*": optimizers.sgd}), r"an optimizer is a pair.*call it first: sgd"),
        (
            lambda: optimizers.partition({"haed": None, "*": None}).init(PARAMS),
            r"partition: the pattern 'haed' fits no leaf; the paths are body/0/bias, body/0/kernel, body/2/slope",
        ),
        (
            lambda: optimizers.partition({"body": None, "*": None}).init({**PARAMS, "body": {"kernel": None}}),
            r"'body' fits no leaf; the paths are head/kernel; what it fits is left out here, as freeze= leaves out",
        ),
        (
            lambda: optimizers.partition({"!body": None, "*": None}).init({**PARAMS, "body": {"kernel": None}}),
            r"'!body' fits no leaf; the paths are head/kernel; what it fits is left out here",
        ),
        (
            lambda: optimizers.partition({"head": 1e-4}),
            r"partition\['head'\]: an optimizer is a pair .*, got 0.0001; .*optimizers.adam\(0.0001\)",
        ),
        (
            lambda: optimizers.partition({"body": None}).init(PARAMS),
            r"no case is for head/kernel; end with '\*', which is for all the rest",
        ),
        (
            lambda: optimizers.partition({"*": optimizers.sgd(0.1)}).update(PARAMS, optimizers.EmptyState(), PARAMS),
            "this state is not a tuple of the states of 1 groups",
        ),
        (
            lambda: optimizers.partition({"*": optimizers.sgd(0.1)}).init(optimizers.ravel(PARAMS)),
            r"flat layout have no leaves to choose from",
        ),
    ],
)
def test_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_group_refuses_by_its_name():
    optimizer = optimizers.partition({"head": optimizers.adam(0.1), "*": None})
    state = optimizer.init(PARAMS)
    other = {**PARAMS, "head": {"kernel": jnp.ones(4)}}
    with pytest.raises(ShapeError, match=r"partition\['head'\]: adam: the gradients do not fit the optimizer's state"):
        optimizer.update(other, state, other)


@pytest.mark.parametrize("groups", [None, 3])
def test_what_is_no_mapping_is_refused(groups):
    with pytest.raises(ConfigError, match="groups must map which leaves to their optimizer"):
        optimizers.partition(groups)


def test_a_group_behind_one_that_has_all_of_it_is_refused():
    with pytest.raises(ConfigError, match="all that 'head' chooses belongs to cases before it; put it before them"):
        optimizers.partition({"*": optimizers.sgd(0.1), "head": None}).init(PARAMS)
