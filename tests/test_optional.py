"""Libraries that one feature alone needs: without each, what needs it says so, with the command that installs it."""

import re
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import _optional, backprop, diagnostics, layers, losses, training
from jaxnet.errors import DependencyError
from jaxnet.training import History

NET = layers.chain(layers.dense(2), jnp.tanh)
X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)


def history():
    return History([{"epoch": i, "step": i, "loss": 1 / i} for i in range(1, 5)])


def report():
    return diagnostics.layer_report(NET, losses.mse, *NET.init(0, X), (X, X))


def diagnosis():
    dead = diagnostics.DeadUnits((), (), ())
    return diagnostics.Diagnosis(
        (diagnostics.Verdict("healthy", 1.0, "", ""),), history(), (report(),) * 5, dead, 1.0, {}, None, 1.0
    )


def rates():
    return diagnostics.RateRange(np.ones(2), np.ones(2), np.ones(2), 1.0, 0.1)


pictures = diagnostics.pictures

# By the module that is missing: what to install, and every entry that needs it.
ENTRIES = {
    "matplotlib": (
        "matplotlib",
        {
            "backprop's draw": lambda path: backprop.trace(lambda w: w * w, 2.0).draw(path),
            "history's plot": lambda path: history().plot(path),
            "a diagnosis as html": lambda path: diagnosis().html(path),
            "a rate range": lambda path: rates().plot(path),
            "activation functions": pictures.activation_functions,
            "gradient flow": lambda path: pictures.gradient_flow(path, [report()], ["a"]),
            "histograms": lambda path: pictures.activation_histograms(path, NET, *NET.init(0, X), X),
            "learning curves": lambda path: pictures.learning_curves(path, history()),
            "weights": lambda path: pictures.weights_over_time(path, [report()], [0]),
        },
    ),
    "tensorboard": ("tensorboard", {"tensorboard": lambda path: training.tensorboard(path)}),
    "wandb": ("wandb", {"wandb": lambda path: training.wandb(project="a")}),
    "trackio": ("trackio", {"trackio": lambda path: training.trackio(project="a")}),
    "jax2onnx": ("jax2onnx", {"export as ONNX": lambda path: training.export_onnx(NET, *NET.init(0, X), X)}),
    "flatbuffers": (
        "flatbuffers",
        {
            "export": lambda path: training.export(NET, *NET.init(0, X), X),
            "load": lambda path: training.load_exported(path),
        },
    ),
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, (_, entries) in ENTRIES.items() for name in entries]
)
def test_each_entry_says_what_to_install(module, name, tmp_path, monkeypatch):
    package, entries = ENTRIES[module]
    if name == "load":
        pytest.importorskip("flatbuffers")
        (tmp_path / "net.png").write_bytes(training.export(NET, *NET.init(0, X), X))
    for loaded in list(sys.modules):
        if loaded.split(".")[: module.count(".") + 1] == module.split("."):
            monkeypatch.setitem(sys.modules, loaded, None)
    monkeypatch.setitem(sys.modules, module, None)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(
        DependencyError, match=rf"needs {module.split('.')[0]}, which .*; pip install {package}$"
    ) as caught:
        entries[name](tmp_path / "net.png")
    assert isinstance(caught.value, ImportError)
    assert sorted(tmp_path.iterdir()) == before


def test_every_optional_import_goes_by_the_one_helper():
    """Of what is imported late, nothing but what every installation has comes by a bare import."""
    needed = {"jax", "jaxnet", "numpy", *sys.stdlib_module_names}
    root = Path(jaxnet.__file__).parent
    bare, loaded = set(), set()
    for file in root.rglob("*.py"):
        text = file.read_text()
        if file.name != "_optional.py":
            loaded |= set(re.findall(r'optional\.load\(.*"([\w.]+)"\)', text))
        for line in re.findall(r"^ +(?:from|import) ([a-z]\w+)", text, re.MULTILINE):
            if line not in needed:
                bare.add((file.relative_to(root).as_posix(), line))
    # A picture is made by `Figure`, which comes first; without tqdm there are lines in place of a bar; jax2onnx, which
    # comes first, needs onnxruntime.
    allowed = {
        ("_figures.py", "matplotlib"),
        ("backprop/picture.py", "matplotlib"),
        ("training/report.py", "tqdm"),
        ("training/onnx.py", "onnxruntime"),
    }
    assert bare <= allowed
    assert {module.split(".")[0] for module in loaded} == set(_optional.PACKAGES)
    assert {module.split(".")[0] for module in ENTRIES} == set(_optional.PACKAGES)
