"""The three slots of the trilinear form: which arrays solve it for which, and the shapes of the results."""

from collections.abc import Sequence
from typing import Literal

from jaxnet.kernels.geometry import Geometry

Slot = Literal["x", "w", "y"]
"""The array that the form is solved for: "y" by a convolution, "x" by its adjoint, "w" by the kernel's gradient."""

OPERANDS: dict[Slot, tuple[Slot, Slot]] = {"y": ("x", "w"), "x": ("y", "w"), "w": ("x", "y")}
"""The arrays it is solved from, in the order of arguments."""


def shape_of(slot: Slot, a: Sequence[int], b: Sequence[int], geometry: Geometry) -> tuple[int, ...]:
    """Returns the shape of the array that the form is solved for, from those of its operands."""
    if slot == "y":  # x (N, B, *L, C), w (N, *K, C / g, O)
        return (*a[:2], *geometry.outputs, b[-1])
    if slot == "x":  # y (N, B, *J, O), w
        return (*a[:2], *geometry.lengths, b[-2] * geometry.groups)
    return (a[0], *geometry.size, a[-1] // geometry.groups, b[-1])  # x, y
