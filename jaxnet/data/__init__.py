"""Data on the host (4.6.1): splits and folds, classes and columns, and batches of arrays, of files and of examples.

Order is drawn by NumPy's Philox generator from an integer seed, so the same seed gives the same split and the same
batches with every version of JAX, on every device.
"""

from jaxnet.data._usable import Arrays, check_finite, check_lengths, must_fill, usable  # noqa: F401
from jaxnet.data.batches import batches, epoch_order
from jaxnet.data.blocks import Blocks, blocks
from jaxnet.data.classes import Classes, classes
from jaxnet.data.columns import columns
from jaxnet.data.examples import Examples, examples
from jaxnet.data.split import kfold, split

__all__ = [
    "Arrays",
    "Blocks",
    "Classes",
    "Examples",
    "batches",
    "blocks",
    "classes",
    "columns",
    "epoch_order",
    "examples",
    "kfold",
    "split",
]
