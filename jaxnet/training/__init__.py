"""Training (4.6): the compiled step, the loop around it, and what keeps a run safe."""

from jaxnet.training.checkpoint import load, read_metadata, save
from jaxnet.training.checkpoints import Checkpoints

__all__ = ["Checkpoints", "load", "read_metadata", "save"]
