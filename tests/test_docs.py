"""The pages of docs/ are what they are made from, and their code can be read; building the site runs it."""

import ast
import importlib.util
import json
import re
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import pages
from benchmarks.diagnosis import outside

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_tables_and_the_front_page_are_of_the_result_files():
    for path, text in pages.pages().items():
        assert path.read_text() == text, f"{path.name} differs; run: python -m benchmarks.pages"


def test_every_result_of_a_whole_run_is_on_a_page():
    shown = {path.name for name in pages.REPORTS for path in pages.files(name)}
    there = {path.name for path in pages.timing.RESULTS.glob("*.json") if "partial" not in path.stem}
    assert shown == {name for name in there if name.split(".")[0].split("-")[0] in pages.REPORTS}
    assert "kernels.json" in shown


def test_the_front_pages_figures_are_sums_best_loops_and_counts(tmp_path, monkeypatch):
    """The pages are written by the code that is compared with them; these figures are by hand."""

    def medians(**seconds):
        return {name.replace("_", ", "): {"median": value} for name, value in seconds.items()}

    steps = [medians(ours=0.1, flax=0.2, torch=0.3) | {"torch.compile": {"median": 0.4}} for _ in range(2)]
    loops = medians(ours=0.001, flax=0.004, flax_scan=0.002, torch=0.005, torch_fused=0.01)
    curves = {"ours": [[[1.0, 89.0], [2.0, 91.0]], [[4.0, 90.0]], [[5.0, 80.0]]], "torch": [[[7.0, 95.0]]]}
    results = {
        "vocoder_step": {"records": [{"seconds": seconds} for seconds in steps]},
        "training": {"loops": [{"seconds_a_step": loops}, {"seconds_a_step": {}}]},
        "speedrun-memory-reused": {"seeds": 3, "records": [{"library": n, "curves": c} for n, c in curves.items()]},
    }
    of = {"devices": ["one GPU"], "versions": {"jax": "0.1"}}
    monkeypatch.setattr(pages.timing, "RESULTS", tmp_path)
    for name, found in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": of, "results": found}))
    said = " ".join(pages.headlines().split())
    assert "vocoder: 200 ms. Flax 400, PyTorch 600, compiled 800 (`python -m benchmarks vocoder-step`: [one GPU" in said
    assert (
        "1,000 steps a second, with every step checked for NaN. Bare loops: Flax with optax 500, PyTorch 200 (" in said
    )
    assert "after 3.0 s of training, the same training in PyTorch 7.0 s (median of 3 seeds; `python -m" in said
    assert "benchmarks --reuse-memory speedrun`: [one GPU, jax 0.1](benchmarks/speedrun.md))" in said


def test_the_guide_says_how_many_programs_were_run_and_counts_those_with_harm():
    def record(program, seed, verdict, remedied, *, counts=True, of_twin="healthy", held_out=False):
        return {
            "program": program, "kind": "batch", "held_out": held_out, "seed": seed, "counts": counts, "score": 0.2,
            "wanted": ["a"], "verdicts": [[verdict, 0.9], ["a", 0.5]], "remedied": remedied, "twin": 1.0,
            "of_twin": [[of_twin, 0.7]],
        }  # fmt: skip

    told = outside.said([
        record("one", 0, "a", 0.7), record("one", 1, "b", 0.5, of_twin="b"), record("one", 2, "healthy", None),
        record("two", 0, "a", 0.9, counts=False, held_out=True),
    ])  # fmt: skip
    every, held_out = len(outside.PROGRAMS), len(outside.HELD_OUT)
    first, second, empty, head, *_ = told.splitlines()
    assert first == (
        f"2 of {every} programs were run, 1 of the {held_out} held out among them: 2 with seed 0, 1 with seed 1, 1 "
        "with seed 2."
    )
    assert second == "In 3 of these 4 runs the fault does harm, and those are counted; in the last column, all."
    assert empty == ""
    assert head.startswith("| kind of fault | detected")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in told.splitlines()[5:]]
    assert rows == [
        ["batch", "2/3", "1/3", "3/3", "1/3", "1/4"], ["all", "2/3", "1/3", "3/3", "1/3", "1/4"],
        ["of these held out", "0/0", "0/0", "0/0", "0/0", "0/1"],
    ]  # fmt: skip
    assert ROOT / "docs" / "diagnostics.md" in pages.pages()


def test_a_pages_figures_end_at_the_first_mark_after_them(tmp_path):
    (page := tmp_path / "page.md").write_text(f"before\n{pages.BEGIN}old\n{pages.END}after\n{pages.END}the end\n")
    assert pages.filled(page, "new\n") == page.read_text().replace("old", "new")


def test_tables_stand_apart_and_what_is_printed_under_one_is_a_list():
    text = "said\n| a |\n|---|\n| 1 |\nfirst\nsecond\n\nafter"
    assert pages.spaced(text) == "said\n\n| a |\n|---|\n| 1 |\n\n- first\n- second\n\nafter"


def test_every_block_of_python_can_be_read():
    for page in PAGES:
        for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            ast.parse(code, str(page))


def test_every_page_with_a_program_is_run():
    """When the site is built, or by a test; what is no whole program is a block of ```py."""
    (built,) = re.findall(r"^programs = (\[.*\])", (ROOT / "docs" / "conf.py").read_text(), re.MULTILINE)
    names = {str(page.relative_to(ROOT / "docs").with_suffix("")): page.read_text() for page in PAGES}
    programs = {name for name, text in names.items() if "\n```python\n" in text}
    rest = {name for name in programs if not any(fnmatch(name, pattern) for pattern in ast.literal_eval(built))}
    ported = {f"coming-from/{library}" for library in ("pytorch", "flax", "equinox", "haiku")}  # tests/test_programs.py
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name in rest - ported if f'/ "{name}.md").read_text()' not in tests} == set()


def test_the_readmes_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]*)", (ROOT / "README.md").read_text())
    assert len(links) > 10
    for link in links:
        assert not link or (ROOT / link).exists(), link


PAGE = """# A page

```python
x = 2
```

```python
print(x)
```

```text
what was printed once
```

Words.
"""


def test_what_a_block_prints_takes_the_place_of_what_it_printed(tmp_path):
    programs = module("programs")
    (page := tmp_path / "page.md").write_text(PAGE)
    assert programs.outputs(str(page)) == ["", "2\n"]
    assert programs.shown(PAGE, ["", "2\n"]) == PAGE.replace("what was printed once", "2")
    assert programs.shown(PAGE, ["3\n", ""]).count("```text") == 1


def test_an_error_names_the_pages_own_line(tmp_path):
    (page := tmp_path / "page.md").write_text(PAGE.replace("print(x)", "print(y)"))
    with pytest.raises(NameError, match="'y'") as found:
        module("programs").outputs(str(page))
    last = found.traceback[-1]
    assert (Path(last.path), last.lineno + 1) == (page, 8)


def test_sphinx_reads_what_a_page_prints_now_and_no_page_that_fails(tmp_path, monkeypatch, capsys):
    called, programs = {}, module("programs")
    programs.setup(SimpleNamespace(add_config_value=lambda *_: None, connect=called.__setitem__))
    app = SimpleNamespace(config=SimpleNamespace(programs=["learn/*"]))
    env = SimpleNamespace(doc2path=lambda name: tmp_path / f"{Path(name).stem}.md")
    texts = {"learn/runs": PAGE, "learn/fails": PAGE.replace("print(x)", "print(y)"), "data": PAGE}
    for name, text in texts.items():
        env.doc2path(name).write_text(text)
    called["env-before-read-docs"](app, env, list(texts))
    for name, now in (("learn/runs", "2"), ("data", "what was printed once")):
        content = [texts[name]]
        called["source-read"](app, name, content)
        assert content == [PAGE.replace("what was printed once", now)]
    with pytest.raises(RuntimeError, match=r"(?s)fails\.md: its program failed.*'y'"):
        called["source-read"](app, "learn/fails", [texts["learn/fails"]])
    called["build-finished"](app, None)
    monkeypatch.setattr(programs, "LONGEST", 0.0)
    called["build-finished"](app, None)
    first, _, slow = capsys.readouterr().err.splitlines()
    assert re.match(r"seconds of .*: learn/runs \d+ \(\d+\)$", first)
    assert re.match(r"SLOW: learn/runs took \d+ s.*; a page should take at most 0$", slow)


def test_a_name_that_two_modules_have_is_no_link_alone():
    pytest.importorskip("sphinx")
    names = module("links").public()
    assert names["fit"] == names["training.fit"] == ("reference/training", "jaxnet.training.fit")
    assert (names["layers.chain"][1], names["optimizers.chain"][1]) == (
        "jaxnet.layers.chain",
        "jaxnet.optimizers.chain",
    )
    assert "chain" not in names
