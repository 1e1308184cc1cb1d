"""How the trilinear form is compiled: which form, for which platform and shapes. All choices are made here.

Each platform has an ordered table of rules, when and which form, with what was measured beside it. They depend on
nothing but the platform and the shapes, and are read when a program is lowered for its platform.
"""

from jaxnet.kernels.lowering import cpu, gpu, onednn, vendor
from jaxnet.kernels.lowering.table import Solver as Solver

__all__ = ["Solver", "cpu", "gpu", "onednn", "vendor"]
