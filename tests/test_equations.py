"""docs/equations.md is complete, and every function and test that it names exists."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = re.findall(
    r"^\| ((?:eq\.|algorithm|figure) [\d.]+) \| (.*?) \| (.*?) \| (.*?) \|$",
    (ROOT / "docs" / "equations.md").read_text(),
    re.MULTILINE,
)
WANTED = [
    *(f"eq. 4.{i}" for i in range(1, 30)),
    *(f"algorithm {i}" for i in range(1, 4)),
    *(f"figure 4.{i}" for i in range(1, 9)),
]


def test_every_equation_algorithm_and_figure_has_one_row():
    assert sorted(row[0] for row in TABLE) == sorted(WANTED)


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_its_function_and_its_test_exist(row):
    _, _, code, tests = row
    names = re.findall(r"`([\w.]+)`", code)
    assert names, "no function is named"
    for name in names:
        module, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function)), name
    paths = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
    assert paths, "no test is named"
    for path, function in paths:
        tree = ast.parse((ROOT / path).read_text())
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, function
