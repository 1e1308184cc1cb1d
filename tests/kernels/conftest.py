"""What the tests of the kernels share."""

import pytest

from jaxnet.kernels.lowering import onednn


@pytest.fixture(autouse=True)
def calls_beside_the_cache(monkeypatch):
    """oneDNN's calls where the processor has them, although the tests keep their compiled programs in files."""
    monkeypatch.setattr(onednn, "_in_files", lambda: False)


@pytest.fixture
def without_calls(monkeypatch):
    """As on a processor that has none."""
    monkeypatch.setattr(onednn, "_works", lambda dtype: False)
