"""Backpropagation (4.5): the computational graph of a function, with every value and adjoint, as text and picture."""

from jaxnet.backprop.diagram import Node
from jaxnet.backprop.tracing import Trace, trace

__all__ = ["Node", "Trace", "trace"]
