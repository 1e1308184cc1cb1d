"""Every function that takes a path takes it through one door: ``~`` is expanded, and what is no local path refused."""

import inspect
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import _checks as checks
from jaxnet import backprop, diagnostics, layers, losses, optimizers, training
from jaxnet.diagnostics import pictures
from jaxnet.errors import CheckpointError, ConfigError, DTypeError
from jaxnet.training import Checkpoints, History, load, read_metadata, save
from tests.training import calls

NET, SGD, X = layers.dense(1), optimizers.sgd(0.1), np.ones((8, 3), np.float32)
PARAMS, STATE = NET.init(0, X)
HISTORY = History([{"epoch": 1, "step": 1, "loss": 0.5, "training_loss": 0.5, "validation_loss": 0.5}])
RATES = diagnostics.RateRange(*(np.array([1.0, 2.0]) for _ in range(3)), 1.0, 0.1)
NOTHING = types.SimpleNamespace()


def fit(**where):
    return calls.fit(NET, losses.mse, SGD, (X, X[:, :1]), epochs=1, batch_size=8, progress=False, **where)


def train(**where):
    step, state = training.make_step(NET, losses.mse, SGD), training.init(NET, SGD, X, 0)
    return calls.train(step, state, (X, X[:, :1]), epochs=1, batch_size=8, progress=False, **where)


def draw(path):
    return backprop.trace(lambda x: x * x, jnp.float32(2)).draw(path)


WRITERS = {
    "training.save.path": lambda path: save(path, {"x": np.ones(2)}),
    "training.Checkpoints.directory": lambda path: Checkpoints(path).save(1, {"x": np.ones(2)}),
    "training.History.save.path": HISTORY.save,
    "training.History.plot.path": HISTORY.plot,
    "training.fit.keep": lambda path: fit(keep=path),
    "training.train.keep": lambda path: train(keep=path),
    "training.keep.directory": lambda path: fit(keep=training.keep(path)),
    "training.keep.log": lambda path: train(keep=training.keep(log=path)),
    "training.export.path": lambda path: training.export(NET, PARAMS, STATE, X, path=path),
    "training.export_onnx.path": lambda path: training.export_onnx(NET, PARAMS, STATE, X, path=path),
    "backprop.Trace.draw.path": draw,
    "diagnostics.RateRange.plot.path": RATES.plot,
    "diagnostics.pictures.activation_functions.path": lambda path: pictures.activation_functions(path),
}
READERS = {
    "training.load.path": lambda path: load(path, {"x": np.ones(2)}),
    "training.load_partial.path": lambda path: training.load_partial(path, {"x": np.ones(2)}),
    "training.read_metadata.path": read_metadata,
    "training.load_best.directory": lambda path: training.load_best(path, NET, X),
    "training.History.load.path": History.load,
    "training.load_exported.source": training.load_exported,
}
# These end in `_figures.saved`, or begin with the check, and want much to draw.
OTHERS = {
    "diagnostics.pictures.rate_range.path", "diagnostics.pictures.gradient_flow.path",
    "diagnostics.pictures.activation_histograms.path", "diagnostics.pictures.learning_curves.path",
    "diagnostics.pictures.weights_over_time.path",
}  # fmt: skip
DOORS = WRITERS | READERS | {
    "diagnostics.Diagnosis.html.path": lambda path: diagnostics.Diagnosis.html(NOTHING, path),
    "training.tensorboard.directory": training.tensorboard,
}  # fmt: skip
OPTIONAL = {"training.fit.keep", "training.train.keep", "training.keep.directory", "training.keep.log",
            "training.export.path", "training.export_onnx.path"}  # fmt: skip

NO_PATHS = {
    "gs://bucket/run": "must be a path on this machine's file systems, got 'gs://bucket/run'; give the bucket's folder",
    "s3://bucket/run": "give the bucket's folder where it is mounted, or a local one, and copy it afterwards",
    Path("gs://bucket/run"): "got 'gs:/bucket/run'; give the bucket's folder",
    "HTTPS://host/run": "must be a path on this machine's file systems",
    "file:///data/run": "give it without its beginning: '/data/run'",
    "": "must be a path, got ''; for the current directory give '.'",
    "a\0b": "no file system has NUL in a name",
    "~nobody-of-this-name/run": "there is no home for '~nobody-of-this-name/run'; write the path in full",
    3: "must be a path, a string or a pathlib.Path, got 3",
    None: "must be a path, a string or a pathlib.Path, got None",
    b"run": "must be a path, a string or a pathlib.Path, got b'run'",
}


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """An empty current directory, and a home elsewhere."""
    for name in ("here", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def needs(name):
    if "plot" in name or "draw" in name or "pictures" in name:
        pytest.importorskip("matplotlib")
    if "onnx" in name:
        pytest.importorskip("jax2onnx")
    elif "export" in name:
        pytest.importorskip("flatbuffers")


@pytest.mark.parametrize("value", NO_PATHS, ids=repr)
@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_local_path_is_refused(door, value, tmp_path):
    needs(door)
    if (value is None and door in OPTIONAL) or (isinstance(value, bytes) and door == "training.load_exported.source"):
        return
    kind, text = ConfigError, NO_PATHS[value]
    if door == "training.load_exported.source" and not isinstance(value, (str, Path)):
        kind, text = DTypeError, "source must be bytes or a path, got"
    with pytest.raises(kind) as caught:
        DOORS[door](value)
    assert text in str(caught.value)
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("door", WRITERS)
def test_home_is_meant_by_a_tilde(door, tmp_path, at_home):
    needs(door)
    for path in ("~/deep/a.png", Path("~/b.png")):
        WRITERS[door](path)
        assert (at_home / str(path)[2:]).exists()
    assert not list((tmp_path / "here").iterdir())


def test_what_was_saved_at_home_is_read_from_there(at_home):
    assert save("~/run", {"x": np.ones(2)}, metadata={"a": 1}) == at_home / "run"
    assert load("~/run", {"x": np.zeros(2)})["x"].sum() == 2
    assert read_metadata("~/run") == {"a": 1}
    HISTORY.save("~/log")
    assert History.load("~/log").records == HISTORY.records
    kept = fit(keep="~/fit")
    np.testing.assert_array_equal(training.load_best("~/fit", NET, X)[0]["kernel"], kept.params["kernel"])
    assert Checkpoints("~/fit").latest().parent == at_home / "fit"
    with pytest.raises(CheckpointError, match=r"load_best: .*home/none holds no checkpoint; wanted the directory that"):
        training.load_best("~/none", NET, X)


@pytest.mark.parametrize("path", ["C:/run", "a:b", ".", "x~/../y", "/a//b"])
def test_local_paths_stay_what_they_are(path):
    assert checks.path("path", path) == Path(path)


def test_no_door_is_forgotten():
    """Whatever public function has an argument named as paths are, is in the table above."""
    names = {"path", "paths", "directory", "folder", "file", "filename", "keep", "log", "source"}
    found = set()

    def look(where, thing):
        for name in names & set(inspect.signature(thing).parameters):
            found.add(f"{where}.{name}")

    modules = {name: getattr(jaxnet, name) for name in dir(jaxnet) if inspect.ismodule(getattr(jaxnet, name))}
    for module_name, module in {**modules, "diagnostics.pictures": pictures}.items():
        own = [name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", [name for name in own if name[0] != "_"]):
            thing = getattr(module, name)
            if inspect.isfunction(thing):
                look(f"{module_name}.{name}", thing)
            elif inspect.isclass(thing):
                for part, method in inspect.getmembers(thing, inspect.isroutine):
                    if getattr(method, "__module__", "") == thing.__module__ and not part.startswith("_"):
                        look(f"{module_name}.{name}.{part}", method)
                if not issubclass(thing, tuple):
                    look(f"{module_name}.{name}", thing)
    of_trees = {"layers.watched.path", "regularizers.weights.path", "backprop.Trace.open.paths"}
    of_trees |= {"training.Checkpoints.keep"}  # a number
    of_trees |= {"data.examples.source", "data.Examples.source"}  # what is read by index
    assert found - of_trees == DOORS.keys() | OTHERS
