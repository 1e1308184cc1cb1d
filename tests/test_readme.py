"""What the README says is so: its code runs, and continuous integration runs its own test command."""

import functools
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import optimizers, testing, training

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_each_command_is_one_line_that_makes_its_own_environment():
    main, tests = blocks("sh")
    for command in (main, tests):
        assert len(command.strip().splitlines()) == 1
        assert command.startswith("python3 -m venv ")
    assert (ROOT / re.search(r"examples/\w+\.py", main).group()).exists()


def test_continuous_integration_takes_its_command_from_here():
    script = (ROOT / ".ci" / "run").read_text()
    (tests,) = [command for command in blocks("sh") if "-m pytest" in command]
    pattern = re.search(r'readme_command "(.*?)"', script).group(1)
    assert [line for line in README.splitlines() if pattern in line] == [tests.strip()]
    assert "eval" in script


def test_the_networks_code_trains(capsys, tmp_path, monkeypatch):
    network, in_one_call, own_layer = blocks("python")
    scope = {}
    exec(network, scope)
    loss, accuracy = re.match(r"loss ([\d.]+), accuracy (\d+)%", capsys.readouterr().out).groups()
    assert float(loss) < 0.3
    assert int(accuracy) > 90
    monkeypatch.chdir(tmp_path)
    exec(in_one_call, scope)
    assert scope["fit"].history[-1]["loss"] < 0.5
    assert (tmp_path / "out" / "noise.png").exists()
    exec(own_layer, scope)
    testing.check_layer(scope["swish"], jax.random.normal(jax.random.key(0), (3, 4)))


def test_the_guide_to_training_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL):
        exec(block, scope)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "curves.png"}
    assert "'accuracy': 1.0" in capsys.readouterr().out  # all its labels are 0


def test_the_guide_to_fine_tuning_runs(capsys):
    scope = {"jax": jax}
    text = (ROOT / "docs" / "fine-tuning.md").read_text()
    text = text.replace("jnp.zeros((256, 8, 8))", "jax.random.normal(jax.random.key(0), (256, 8, 8))")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, scope)
    np.testing.assert_array_equal(scope["small"].params[0][0]["kernel"], scope["fit"].params[0][0]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, scope["small"].state, scope["fit"].state)
    assert (scope["params"][1]["kernel"] != scope["fit"].params[1]["kernel"]).any()  # merged
    assert (scope["fit"].params[0][0]["kernel"] != scope["trained"][0]["kernel"]).any()  # thawed


def test_the_guide_to_sequences_runs(capsys):
    text = (ROOT / "docs" / "sequences.md").read_text()
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, scope)
    printed = capsys.readouterr().out
    off = float(re.search(r"\[8, 0, 32, 60\] off by ([\d.e-]+)\n\(10, 1, 10, 1\)\n", printed).group(1))
    assert off < 1e-5
    (refused,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert printed.splitlines()[-1] == " ".join(refused.split())
    np.testing.assert_allclose(scope["y"][:, -1], jnp.sum(scope["x"], axis=1), atol=1e-4)
    assert np.isfinite(scope["value"])
    assert scope["written"].shape == (20, 1)
    assert not jnp.any(jnp.isnan(scope["logits"]))


def test_the_life_of_a_network_in_its_files(tmp_path, monkeypatch, capsys):
    """Each block of the page is a file: run one after the other, with nothing in common but the directory."""
    pytest.importorskip("flatbuffers")
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", (ROOT / "docs" / "using.md").read_text(), re.DOTALL)
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    assert [name for name, _ in blocks[1:]] == ["train.py", "predict.py", "export.py", "serve.py", "tune.py"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("model", None)

    def press_at_the_third_epoch(record, train_state):
        if record["epoch"] == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(training, "fit", functools.partial(training.fit, callbacks=[press_at_the_third_epoch]))
        with pytest.raises(KeyboardInterrupt, match="the same call goes on from there"):
            runpy.run_path("train.py")
    assert re.search(r"SIGINT: saved at step (3\d|40) \(epoch 4\) in run", capsys.readouterr().out)
    trained = runpy.run_path("train.py")["fit"]
    assert "epoch  3/40" not in capsys.readouterr().out
    assert len(trained.history) > 3
    predicted = runpy.run_path("predict.py")
    right, *shapes = capsys.readouterr().out.splitlines()
    assert float(right.removeprefix("right: ")) == pytest.approx(max(trained.history["validation_accuracy"]), abs=0.03)
    assert shapes == ["(64, 3) " * 9 + "(24, 3) "]
    runpy.run_path("export.py")
    exported = runpy.run_path("serve.py")["net"]
    np.testing.assert_allclose(exported(predicted["x"][-24:]), predicted["logits"], rtol=1e-5, atol=1e-5)
    report = runpy.run_path("tune.py")["report"]
    assert report.kept == ("1/bias", "1/kernel")
    assert set(report.loaded) == {"0/0/bias", "0/0/kernel", "0/1/offset", "0/1/scale"}
    del sys.modules["model"]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`jaxnet\.([\w.]+)", README))))
def test_every_module_named_exists(name):
    import jaxnet

    target = jaxnet
    for part in name.split("."):
        target = getattr(target, part)
    assert target.__name__.rpartition(".")[2] == name.rpartition(".")[2]


def test_every_name_in_the_map_of_the_chapter_exists():
    import jaxnet

    rows = re.findall(r"^\| .* \| (`jaxnet.*?) \| (.*?) \|$", README, re.MULTILINE)
    assert len(rows) >= 6
    for modules, contents in rows:
        owners = [getattr(jaxnet, name) for name in re.findall(r"jaxnet\.(\w+)", modules)]
        for name in re.findall(r"`(\w+)`", contents):
            assert any(hasattr(owner, name) for owner in owners), name


def test_the_guide_to_data_runs(capsys):
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL):
        exec(block, scope)
    named, *folds = capsys.readouterr().out.splitlines()
    assert set(eval(named)) <= {"cat", "dog"}
    assert len(folds) == 5
    assert all(0 < float(loss) < 20 for loss in folds)


def test_the_guide_to_optimizers_runs():
    text = (ROOT / "docs" / "optimizers.md").read_text()
    groups, in_16_bits, complex_ones, raveled = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    scope = {}
    exec(groups, scope)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(scope["updates"][0]))
    assert all(jnp.any(scope["updates"][part]["kernel"]) for part in (2, 4))
    exec(in_16_bits, scope)
    narrow = {"w": jnp.ones(2, jnp.bfloat16)}
    assert scope["optimizer"].init(narrow).inner_state.master["w"].dtype == jnp.float32
    scope |= {"optimizer": optimizers.sgd(0.25), "loss": lambda z: jnp.sum(jnp.abs(z - (1 + 2j)) ** 2)}
    exec(complex_ones, scope)
    z, _ = scope["step"](jnp.zeros(1, jnp.complex64), scope["optimizer"].init(jnp.zeros(1, jnp.complex64)))
    np.testing.assert_allclose(z, [0.5 + 1j], rtol=1e-6)
    params, scope["net_loss"] = scope["params"], lambda params, batch: jnp.sum(params[4]["kernel"] * batch)
    exec(raveled, scope)
    learned, _ = scope["step"](scope["params"], scope["state"], jnp.float32(2))
    np.testing.assert_allclose(learned.unravel()[4]["kernel"], params[4]["kernel"] - 0.5, rtol=1e-6)


def test_prediction_without_this_library(tmp_path, monkeypatch):
    """The page's first program here, its second in a process of its own, which compares."""
    pytest.importorskip("flatbuffers")
    make, serve = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "onnx.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(make, {})
    subprocess.run([sys.executable, "-c", serve], check=True, cwd=tmp_path)
