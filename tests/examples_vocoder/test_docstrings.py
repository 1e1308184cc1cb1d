"""The examples in the docstrings of the vocoder run."""

import doctest
import importlib
from pathlib import Path

import pytest

import examples.vocoder

FILES = sorted(Path(examples.vocoder.__path__[0]).glob("*.py"))


@pytest.mark.parametrize("name", [file.stem for file in FILES if ">>> " in file.read_text()])
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"examples.vocoder.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
