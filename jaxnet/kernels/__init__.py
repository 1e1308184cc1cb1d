"""The array functions under the layers: convolution, pooling, attention; one door each."""

from jaxnet.kernels.attention import attention
from jaxnet.kernels.conv import conv, conv_transpose
from jaxnet.kernels.pooling import avg_pool, max_pool
from jaxnet.kernels.torch_layout import (
    conv_kernel_from_torch,
    conv_kernel_to_torch,
    conv_transpose_kernel_from_torch,
    conv_transpose_kernel_to_torch,
)

__all__ = [
    "attention",
    "avg_pool",
    "conv",
    "conv_kernel_from_torch",
    "conv_kernel_to_torch",
    "conv_transpose",
    "conv_transpose_kernel_from_torch",
    "conv_transpose_kernel_to_torch",
    "max_pool",
]
