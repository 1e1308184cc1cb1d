"""`training.load_partial`: some leaves of a tree out of a checkpoint, under other names, in another dtype."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import CheckpointError, ConfigError, DTypeError
from jaxnet.training import load_partial, save

X = np.random.default_rng(1).standard_normal((8, 3)).astype(np.float32)
BODY = {"kernel": np.float32([[1.5, 2.0 + 2**-10]]), "bias": np.float32([3e38])}
HEAD = {"kernel": np.ones((2, 10), np.float32)}
NEW = {"kernel": np.zeros((2, 4), np.float32)}


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "old", {"encoder": {"0": BODY}, "head": HEAD, "key": jax.random.key(3)})


def test_a_backbone_under_a_new_head(path):
    like = {"body": jax.tree.map(jnp.zeros_like, BODY), "head": NEW}
    found, report = load_partial(path, like, "body", rename={"body": "encoder/0"})
    jax.tree.map(np.testing.assert_array_equal, found["body"], BODY)
    assert isinstance(found["body"]["kernel"], jax.Array)  # as like's, and as it was given:
    assert found["head"] is not like["head"]
    assert found["head"]["kernel"] is NEW["kernel"]
    assert report == training.Loaded(
        loaded={"body/bias": "encoder/0/bias", "body/kernel": "encoder/0/kernel"},
        kept=("head/kernel",),
        unused=("head/kernel", "key"),
        cast={},
    )
    # The same by other ways to say it.
    for only, rename in (
        (["*bias", "body/kernel"], {"body": "encoder/0"}),
        (
            lambda path, leaf: path.startswith("body"),
            {"body/kernel": "encoder/0/kernel", "": "nowhere", "body": "encoder/0"},
        ),
        ({"body": True, "head": False}, {"body/": "/encoder/0/"}),
    ):
        if "" in rename:
            with pytest.raises(ConfigError, match="rename changes '' nowhere"):
                load_partial(path, like, only, rename=rename)
            rename = {name: new for name, new in rename.items() if name}
        assert load_partial(path, like, only, rename=rename)[1] == report
    alone, report = load_partial(path, like["body"]["bias"], under="encoder/0/bias")
    np.testing.assert_array_equal(alone, BODY["bias"])
    assert report == training.Loaded({"": "encoder/0/bias"}, (), (), {})
    twice, _ = load_partial(path, {"a": BODY, "b": BODY}, under="encoder", rename={"a": "0", "b": "0"})
    np.testing.assert_array_equal(twice["a"]["kernel"], twice["b"]["kernel"])


def test_a_place_is_not_another_whose_name_begins_with_it(tmp_path):
    path = save(tmp_path / "many", {"encoder": {"1": BODY, "10": BODY}})
    assert load_partial(path, BODY, under="encoder/1")[1].unused == ()


def test_what_does_not_fit_is_listed_with_its_cure(path):
    with pytest.raises(CheckpointError) as caught:
        load_partial(path, {"0": BODY | {"scale": NEW["kernel"]}, "head": NEW}, rename={"0": "encoder/0"})
    assert str(caught.value) == (
        f"load_partial: {path} does not fit what is to be loaded:\n"
        "  1 missing from the file: '0/scale (of encoder/0/scale)'\n"
        "  1 different: 'head/kernel' is float32 (2, 10) in the file, float32 (2, 4) in the tree\n"
        "  4 in the file: 'encoder/0/bias', 'encoder/0/kernel', 'head/kernel', 'key'\n"
        "  give the place of the tree in the file as under=, other names as rename={'ours': \"the file's\"}\n"
        "  what is to stay as it is, a head of another size, is left out with only="
    ).replace('"the file\'s"', "'the file's'")
    half = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.bfloat16), BODY)
    with pytest.raises(CheckpointError, match="to have dtypes changed, give cast=True"):
        load_partial(path, half, under="encoder/0")
    with pytest.raises(CheckpointError, match=r"float32 \(1, 2\) in the file, int32 \(1, 2\) in the tree") as caught:
        load_partial(path, {"kernel": jnp.zeros((1, 2), jnp.int32)}, under="encoder/0", cast=True)
    assert "cast=True" not in str(caught.value)  # which would not help


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"only": "boby"}, ConfigError, "load_partial: the pattern 'boby' fits no leaf; the paths are bias, kernel"),
        ({"only": lambda path, leaf: False}, ConfigError, "only chooses no leaf, .*; the paths are bias, kernel"),
        ({"rename": {"encoder/0": "bias"}}, ConfigError, "rename changes 'encoder/0' nowhere; .* are bias, kernel"),
        ({"rename": ["a"]}, ConfigError, "rename must map places of like to those of the file"),
        ({"under": "nowhere"}, CheckpointError, "2 missing .*\n.*4 in the file: 'encoder/0/bias'"),
        ({"under": 3}, ConfigError, "under must be a place"),
        ({"cast": 1}, ConfigError, "cast"),
        ({"only": "kernel", "like": {"bias": jax.ShapeDtypeStruct((1,), jnp.float32), "kernel": BODY["kernel"]}},
         DTypeError, r"like\['bias'\] is a shape and a dtype alone, and nothing is loaded into it"),
    ],
    ids=str.split("pattern nothing direction list under number flag struct"),
)  # fmt: skip
def test_bad_input(path, options, error, message):
    with pytest.raises(error, match=message):
        load_partial(path, **{"like": BODY, "under": "encoder/0", **options})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_cast_that_is_asked_for(dtype, path, tmp_path):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    like = {"kernel": np.zeros((1, 2), dtype)}
    found, report = load_partial(path, like, under="encoder/0", cast=True)
    assert found["kernel"].dtype == dtype
    np.testing.assert_array_equal(found["kernel"], BODY["kernel"].astype(dtype))
    assert report.cast == {"kernel": f"float32 to {dtype}"}
    back, _ = load_partial(save(tmp_path / "new", found), {"kernel": jnp.zeros((1, 2))}, cast=True)
    np.testing.assert_array_equal(back["kernel"], found["kernel"].astype(np.float32))
    bias = {"bias": np.zeros(1, dtype)}
    if dtype == np.float16:
        with pytest.raises(CheckpointError, match=r"'bias' of .* holds values beyond the range of float16"):
            load_partial(path, bias, under="encoder/0", cast=True)
    else:
        assert load_partial(path, bias, under="encoder/0", cast=True)[0]["bias"] > 1e38


def test_out_of_a_runs_directory(tmp_path):
    net = layers.chain(layers.dense(4), layers.batch_norm(), layers.dense(2))
    fit = training.fit(
        net, losses.mse, optimizers.sgd(0.1), (X, X[:, :2]), epochs=1, batch_size=4, keep=tmp_path, progress=False
    )
    other = layers.chain(layers.dense(4), layers.batch_norm(), layers.dense(7))
    params, state = other.init(1, X)
    loaded, report = load_partial(tmp_path, params, ["0", "1"])
    jax.tree.map(np.testing.assert_array_equal, loaded[:2], fit.params[:2])
    assert loaded[2]["kernel"] is params[2]["kernel"]
    assert report.loaded["0/bias"] == "train_state/params/0/bias"
    statistics, _ = load_partial(tmp_path, state, under="state")
    jax.tree.map(np.testing.assert_array_equal, statistics, fit.state)
    half, report = load_partial(tmp_path, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), "0", cast=True)
    np.testing.assert_array_equal(half[0]["kernel"], fit.params[0]["kernel"].astype(jnp.bfloat16))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"load_partial: .*empty holds no checkpoint"):
        load_partial(tmp_path / "empty", params)
