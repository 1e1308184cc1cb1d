"""Libraries that one feature alone needs, imported where it is used."""

import importlib
from typing import Any

from jaxnet.errors import DependencyError

PACKAGES = {name: name for name in ("matplotlib", "flatbuffers", "jax2onnx", "tensorboard", "wandb", "trackio")}
"""By the library's first name in Python, what pip calls it."""


def load(what: str, module: str) -> Any:
    """Imports a module of an optional library.

    Args:
      what: what needs it, as the error says.
      module: its full name.

    Raises:
      DependencyError: it is not installed, or it cannot be imported; with the command that installs it.

    Example:
      >>> from jaxnet import _optional
      >>> _optional.load("a picture", "json").dumps([1])
      '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        first = module.partition(".")[0]
        package = PACKAGES.get(first, first)
        raise DependencyError(
            f"{what} needs {first}, which cannot be imported ({error}); pip install {package}"
        ) from error
