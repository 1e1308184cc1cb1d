"""Training (4.6): the compiled step, the loop around it, and what keeps a run safe."""

from jaxnet.training.export import ExportedNet as ExportedNet
from jaxnet.training.export import export as export
from jaxnet.training.export import load_exported as load_exported

__all__ = ["ExportedNet", "export", "load_exported"]
