"""The bundled speech, for the tests that need some."""

from pathlib import Path

import pytest

SPEECH = Path(__file__).parent / "speech"


@pytest.fixture(scope="session")
def speech():
    """Four prompts of one speaker, 10 s in all: two to train on, one to validate, one to test; see their NOTICE."""
    pytest.importorskip("av", reason="PyAV, which decodes the bundled speech, is not installed")
    from examples.vocoder import data

    return data.load(SPEECH)
