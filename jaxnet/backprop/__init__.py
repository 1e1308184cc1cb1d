"""Backpropagation (4.5): the computational graph of a function, with every value and adjoint, as text and picture."""

from jaxnet.backprop.tracing import Node, Trace, trace

__all__ = ["Node", "Trace", "trace"]
