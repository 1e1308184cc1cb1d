"""Pictures as files, which need matplotlib: panels of one look, and how they are written."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxnet import _checks as checks
from jaxnet import _optional as optional

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(panels: int, *, columns: int = 2, width: float = 4.2, height: float = 3.0) -> tuple["Figure", list[Any]]:
    """An empty picture of so many panels, and these."""
    columns = min(columns, panels)
    rows = -(-panels // columns)
    new_figure = optional.load("a picture", "matplotlib.figure").Figure
    result = new_figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(result.subplots(rows, columns, squeeze=False).ravel())
    for spare in axes[panels:]:
        spare.remove()
    for ax in axes[:panels]:
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return result, axes[:panels]


def saved(picture: "Figure", path: Any) -> Path:
    """Writes a picture, PNG, SVG or PDF by its ending, and returns its path."""
    path = checks.path("path", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=150)
    return path
