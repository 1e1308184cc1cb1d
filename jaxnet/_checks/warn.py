"""Warnings that name the door that warns, and the user's line."""

import os
import sys
import warnings

import jax

from jaxnet import errors

_LIBRARIES = tuple(os.path.dirname(os.path.abspath(file)) + os.sep for file in (errors.__file__, jax.__file__))


def warn(message: str) -> None:
    """A `UserWarning` in the name of the innermost door, at the innermost line that is neither ours nor JAX's."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        level, frame = level + 1, frame.f_back
    who = errors.innermost()
    warnings.warn(f"{who}: {message}" if who else message, stacklevel=level)
