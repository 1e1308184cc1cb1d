"""The eight programs of the documentation: ours run, in no more lines than the peers', and the page counts right."""

import re
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import programs
from jaxnet import training

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from" / "programs.md").read_text()


def test_lines_and_tokens_are_those_of_code():
    text = '"""Text\nof two lines."""\n\nimport a  # why\n\n\n# nothing\nx = a.f(\n    1,\n)\ny = """one\ntwo"""\n'
    assert programs.count(text) == (6, 2 + 9 + 3)


@pytest.mark.parametrize("program", programs.PROGRAMS)
def test_the_page_counts_what_there_is(program):
    counts = programs.counted(program)
    row = programs.table({program: counts}, {}).splitlines()[-1]
    assert row in PAGE.splitlines()
    heading = programs.PROGRAMS[program][0].upper() + programs.PROGRAMS[program][1:]
    (section,) = [text for text in PAGE.split("\n## ") if text.startswith(heading)]
    shown = re.findall(r"^[\w ]+, (\d+) lines$", section, re.MULTILINE)
    peers = [lines for library, (lines, _) in counts.items() if library != "ours"]
    assert list(map(int, shown)) == [counts["ours"][0], min(peers)]


@pytest.mark.parametrize("program", programs.NAMED)
def test_ours_is_no_longer_than_the_shortest_peer(program):
    counts = programs.counted(program)
    assert counts["ours"][0] <= min(lines for library, (lines, _) in counts.items() if library != "ours")


@pytest.fixture
def short(monkeypatch):
    """At most 10 epochs a call of `fit`."""
    fit = training.fit
    monkeypatch.setattr(
        training, "fit", lambda *given, epochs, **options: fit(*given, epochs=min(epochs, 10), **options)
    )


@pytest.mark.parametrize("program", [name for name in programs.PROGRAMS if name != "loader"])
def test_ours_runs(program, short, tmp_path, monkeypatch, capsys):
    """What they reach with all their epochs is what the benchmark prints."""
    monkeypatch.chdir(tmp_path)
    for file in programs.files(program, "ours"):
        name = f"benchmarks.programs.{program}.{file.stem}"
        monkeypatch.delitem(sys.modules, name, raising=False)
        with jax.numpy_rank_promotion("allow"):  # users write scale * x, as they do in the peers
            runpy.run_module(name, run_name="__main__")
    result = float(capsys.readouterr().out.split()[-1])
    assert result < 0.15 if program == "gan" else result > 0.85


@pytest.mark.peers
def test_ours_takes_pytorchs_loader(short, capsys):
    pytest.importorskip("torch")
    runpy.run_module("benchmarks.programs.loader.ours", run_name="__main__")
    assert float(capsys.readouterr().out.split()[-1]) > 0.85


@pytest.mark.peers
@pytest.mark.parametrize("library", ["torch", "flax", "equinox", "haiku"])
def test_a_peers_program_does_the_same_work(library, capsys):
    """The first one, as a sample: the benchmark runs all."""
    pytest.importorskip(library)
    import jax

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runpy.run_module(f"benchmarks.programs.classifier.{library}", run_name="__main__")
    assert np.isclose(float(capsys.readouterr().out.split()[-1]), 0.97, atol=0.02)


@pytest.mark.peers
@pytest.mark.parametrize("page", ["pytorch", "flax", "equinox", "haiku"])
def test_the_pages_weights_come_over(page):
    """Each compares what both networks compute; PyTorch's trains on, too."""
    for library in {"pytorch": ("torch",), "haiku": ("haiku",)}.get(page, (page,)):
        pytest.importorskip(library)
    import jax

    text = (Path(programs.__file__).parents[2] / "docs" / "coming-from" / f"{page}.md").read_text()
    scope = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(block, scope)
    if page == "pytorch":
        import torch

        images = torch.from_numpy(scope["images"]).permute(0, 3, 1, 2)
        with torch.no_grad():
            theirs = scope["model"](images)
        ours, _ = scope["net"].apply(scope["fit"].params, scope["fit"].state, scope["images"], train=False)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
