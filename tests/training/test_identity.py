"""A run that was changed is not taken up unnoticed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, layers, losses, optimizers, regularizers, training
from jaxnet.errors import ConfigError
from tests.training import calls

X = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
Y = X[:, :1] ** 2


def network(activation=jnp.tanh):
    return layers.chain(layers.dense(4), activation, layers.dense(1))


def fit(directory, net=None, loss=losses.mse, optimizer=None, data=(X, Y), **options):
    options = {"epochs": 2, "batch_size": 8, "progress": False} | options
    if not isinstance(data, tuple):
        options.pop("batch_size")
    return calls.fit(net or network(), loss, optimizer or optimizers.adam(1e-2), data, keep=directory, **options)


def start(seed):
    return network().init(seed, X[:1])


CHANGES = {
    "rate": ({"optimizer": optimizers.adam(2e-2)}, "the optimizer or its settings"),
    "schedule": (
        {"optimizer": optimizers.adam(lambda count: 1e-2 / (1 + count.astype(jnp.float32)))},
        "the optimizer or its settings",
    ),
    "decay": ({"optimizer": optimizers.adamw(1e-2)}, "the optimizer or its settings"),
    "network": ({"net": network(activations.relu)}, r"the step's program \(network"),
    "loss": ({"loss": losses.mae}, r"the step's program \(network, loss"),
    "metrics": ({"metrics": {"mae": losses.mae}}, "the step's program"),
    "regularizer": ({"regularizer": regularizers.l2(1e-3)}, "the step's program"),
    "accumulate": ({"accumulate": 2}, "the step's program"),
    "key": ({"key": 5}, "the key, the parameters to begin with"),
    "start": ({"start": start(3)}, r"the parameters to begin with \(key, pretrained weights or initializers\)"),
    "batch size": ({"batch_size": 10}, "batch_size 8, now 10"),
    "order": ({"seed": 3}, "seed 0, now 3"),
    "shuffle": ({"shuffle": False}, "shuffle True, now False"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    fit(directory, epochs=1)
    return directory


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_named_and_how_to_go_on(begun, change):
    options, named = CHANGES[change]
    before = sorted(begun.rglob("*"))
    with pytest.raises(ConfigError, match=named) as refused:
        fit(begun, **options)
    assert "resume='anyway'" in str(refused.value)
    assert "another directory" in str(refused.value)
    assert sorted(begun.rglob("*")) == before
    if change != "network":
        assert "network" not in str(refused.value).replace("(network, loss,", "")


@pytest.mark.parametrize("change", ["rate", "regularizer", "batch size"])
def test_anyway_goes_on_with_what_fits(tmp_path, change):
    fit(tmp_path, epochs=1)
    resumed = fit(tmp_path, resume="anyway", **CHANGES[change][0])
    assert len(resumed.history) == 2
    assert int(resumed.train_state.step) == 5 + 40 // CHANGES[change][0].get("batch_size", 8)
    fit(tmp_path, epochs=3, **CHANGES[change][0])  # from then on it is that run


def test_anyway_in_the_middle_of_an_epoch_begins_it_again(tmp_path):
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 40, 8)]

    def broken(epoch):
        yield from batches[: 5 if epoch == 0 else 3]
        if epoch == 1:
            raise OSError("the share is gone")

    with pytest.raises(OSError, match="the share is gone"):
        fit(tmp_path, data=broken)
    resumed = fit(tmp_path, data=lambda epoch: batches, resume="anyway", steps_per_epoch=5)
    assert int(resumed.train_state.step) == 5 + 3 + 5


def test_anyway_forgets_what_the_epoch_that_begins_again_had_measured(tmp_path):
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 40, 8)]
    still = {"net": layers.dense(1), "optimizer": optimizers.sgd(0.0)}

    def broken(epoch):
        yield from batches if epoch == 0 else [(X[:8], Y[:8] + 100)] * 3
        if epoch == 1:
            raise OSError("the share is gone")

    with pytest.raises(OSError, match="the share is gone"):
        fit(tmp_path, data=broken, **still)
    resumed = fit(tmp_path, data=lambda epoch: batches, resume="anyway", steps_per_epoch=5, **still)
    assert resumed.history["loss"][1] == resumed.history["loss"][0]


def test_the_same_call_in_another_shape_of_code_is_the_same_run(tmp_path):
    """Names, line numbers and objects do not count, only what is computed; nor do the data, which no one can know."""
    fit(tmp_path, epochs=1)

    def squared(prediction, target):
        return losses.mse(prediction, target)

    again = layers.chain(layers.dense(4), lambda x: jnp.tanh(x), layers.dense(1))
    fit(tmp_path, net=again, loss=squared, optimizer=optimizers.adam(np.float32(1e-2)), data=(X + 1, Y))


def test_early_stopping_and_more_epochs_are_no_other_run(tmp_path):
    fit(tmp_path, epochs=1, validation=(X, Y), early_stopping=3)
    assert len(fit(tmp_path, epochs=3, validation=(X[:9], Y[:9]), early_stopping=5).history) == 3


def test_of_train_a_text_of_the_users_counts_too(tmp_path):
    net, optimizer = network(), optimizers.sgd(0.1)
    step = training.make_step(net, losses.mse, optimizer)

    def train(**options):
        state = training.init(net, optimizer, X[:1], 0)
        options = {"epochs": 1, "batch_size": 8, "progress": False, "keep": tmp_path} | options
        return calls.train(step, state, (X, Y), **options)

    train(identity={"data": "version 1"})
    train(identity={"data": "version 1"}, epochs=2)
    with pytest.raises(ConfigError, match="what differs is data"):
        train(identity={"data": "version 2"}, epochs=3)
    with pytest.raises(ConfigError, match=r"^keep: identity names optimizer, which are found out by themselves"):
        train(identity={"optimizer": "mine"})
    for wrong in ("version 1", {"data": b"1"}, {"data": None}, [("data", "1")]):
        with pytest.raises(ConfigError, match=r"^keep: identity must be texts by name, such as .*, got"):
            train(identity=wrong)
    with pytest.raises(ConfigError, match="resume must be one of 'same', 'anyway'"):
        train(resume="yes")


def test_a_program_that_calls_python_back_has_the_same_fingerprint_in_every_process():
    from jaxnet.training.identity import of_program

    def make():
        def f(x):
            jax.debug.callback(lambda x: None, x)
            return jax.pure_callback(lambda x: np.asarray(x) * 2, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

        return f

    keep = [make() for _ in range(50)]  # at other addresses
    assert of_program(make(), jnp.ones(3)) == of_program(keep[17], jnp.ones(3))
    assert of_program(lambda x: x * 2, jnp.ones(3)) != of_program(lambda x: x * 3, jnp.ones(3))


def test_every_array_counts_and_its_place_dtype_and_shape():
    from jaxnet.training.state import checksum

    tree = {"a": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32), "c": jax.random.key(3)}
    others = [
        {**tree, "a": np.float32([[1, 2], [1, 1]])},
        {**tree, "a": tree["a"].view(np.int32)},
        {**tree, "a": tree["a"].reshape(4)},
        {**tree, "b": np.float32([0, 1])},
        {**tree, "c": jax.random.key(4)},
        {"a": tree["b"], "b": tree["a"], "c": tree["c"]},
        {"a": tree["a"], "d": tree["b"], "e": tree["c"]},
    ]
    assert len({checksum(one) for one in [tree, *others]}) == len(others) + 1
    assert checksum(jax.tree.map(lambda leaf: leaf.copy(), tree)) == checksum(tree)


def test_every_entry_of_a_large_constant_counts(tmp_path):
    """Whose text is hexadecimal, as an address is."""

    def weighted(first):
        weights = jnp.array([first] + [1.0] * 199)
        return lambda prediction, target: losses.mse(prediction, target) * jnp.sum(weights)

    fit(tmp_path, loss=weighted(2.0), epochs=1)
    with pytest.raises(ConfigError, match="the step's program"):
        fit(tmp_path, loss=weighted(3.0))


def test_batches_of_several_shapes_in_another_order_are_the_same_run(tmp_path):
    batches = [(X[:8], Y[:8]), (X[:16], Y[:16])]
    fit(tmp_path, data=batches, epochs=1)
    assert len(fit(tmp_path, data=batches[::-1], epochs=2).history) == 2
    with pytest.raises(ConfigError, match="the optimizer or its settings"):
        fit(tmp_path, data=batches, epochs=3, optimizer=optimizers.adam(2e-2))
