"""Sizes before any array exists: output lengths, paddings, parameter counts, receptive fields, multiply-adds.

Everything here is arithmetic on Python integers, one spatial dimension at a time; a layer with several
applies it to each. A length can also be a symbolic dimension of `jax.export`, such as ``4*t``.

`multiply_adds` counts those of any function, from its trace.
"""

from jaxnet._multiply_adds import multiply_adds as multiply_adds
from jaxnet.sizes.counts import conv_multiply_adds, conv_parameters, dense_parameters
from jaxnet.sizes.lengths import (
    conv_length,
    conv_padding,
    conv_transpose_length,
    conv_transpose_padding,
    pool_length,
    receptive_field,
    torch_padding,
)
from jaxnet.sizes.slide import Padding as Padding
from jaxnet.sizes.slide import Slide, slide

__all__ = [
    "Slide",
    "conv_length",
    "conv_multiply_adds",
    "conv_padding",
    "conv_parameters",
    "conv_transpose_length",
    "conv_transpose_padding",
    "dense_parameters",
    "pool_length",
    "receptive_field",
    "slide",
    "torch_padding",
]
