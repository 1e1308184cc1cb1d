"""jaxnet: everything that learns is a pair of pure functions over pytrees that you own."""

from jaxnet import errors

__version__ = "0.1.0"
__all__ = ["errors"]
