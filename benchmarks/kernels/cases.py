"""The cases of the kernel sweep: one table, one record a case."""

import math
from typing import Any, NamedTuple


class Case(NamedTuple):
    """One call of a kernel. The numbers hold for every spatial dimension; padding follows from them.

    Attributes:
      family: what it is counted under.
      batch: B.
      lengths: of the input, one a spatial dimension.
      channels: C_in.
      filters: C_out.
      size: K.
      stride: S.
      dilation: d.
      groups: g.
      operation: the function's name in `jaxnet.kernels`.
      copies: of a representative case, how many kernels it runs with under ``vmap``; 0 for any other case.
      both: whether it also runs with as many inputs as kernels.
    """

    family: str
    batch: int
    lengths: tuple[int, ...]
    channels: int
    filters: int
    size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    operation: str = "conv"
    copies: int = 0
    both: bool = False

    @property
    def label(self) -> str:
        """The case in the notation of the documentation: ``8x2048, 64->64, K3 S2 d9 g4``."""
        shape = "x".join(map(str, (self.batch, *self.lengths)))
        options = [f"{k}{v}" for k, v in (("S", self.stride), ("d", self.dilation), ("g", self.groups)) if v > 1]
        channels = str(self.channels) if self.pooling else f"{self.channels}->{self.filters}"
        kind = [self.operation.removesuffix("_pool")] if self.pooling else []
        return f"{shape}, {channels}, " + " ".join([*kind, f"K{self.size}", *options])

    @property
    def pooling(self) -> bool:
        """Whether there is no kernel."""
        return self.operation.endswith("_pool")

    @property
    def modes(self) -> tuple[str, ...]:
        """What is timed: every case forward and with its gradient, a few also in a loop and batched."""
        more = ("scan", "vmap") if self.copies else ()
        return ("forward", "gradient", *more, *(("vmap both",) if self.both else ()))

    @property
    def extent(self) -> int:
        """How far a kernel reaches, d (K - 1) + 1."""
        return self.dilation * (self.size - 1) + 1

    @property
    def padding(self) -> tuple[int, int]:
        """Before and after each dimension: L / S outputs, S L if transposed; equal sides where those can be."""
        if self.operation == "conv_transpose":
            before = self.extent - 1 - self.torch_transposed_padding[0]
            return before, before + self.torch_transposed_padding[1]
        spare = max(self.extent - self.stride, 0)
        if spare % 2 and self.stride % 2 == 0:
            spare += self.stride - 1
        return spare // 2, spare - spare // 2

    @property
    def torch_transposed_padding(self) -> tuple[int, int]:
        """PyTorch's ``padding`` and ``output_padding`` for S L outputs."""
        spare = self.extent - self.stride
        return -(-spare // 2), spare % 2

    @property
    def out_lengths(self) -> tuple[int, ...]:
        """The lengths of the output."""
        if self.operation == "conv_transpose":
            return tuple(self.stride * n for n in self.lengths)
        return tuple((n + sum(self.padding) - self.extent) // self.stride + 1 for n in self.lengths)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """``(*K, C_in / g, C_out)``."""
        return (*(self.size,) * len(self.lengths), self.channels // self.groups, self.filters)

    @property
    def multiply_adds(self) -> int:
        """Of one forward call, those with a stuffed zero not counted; of pooling, none."""
        stops = self.lengths if self.operation == "conv_transpose" else self.out_lengths
        return 0 if self.pooling else self.batch * math.prod(stops) * math.prod(self.kernel_shape)


def _pool(kind: str, batch: int, lengths: tuple[int, ...], channels: int, size: int, stride: int, **more: Any) -> Case:
    return Case("pooling", batch, lengths, channels, channels, size, stride, operation=f"{kind}_pool", **more)


def _up(batch: int, lengths: tuple[int, ...], channels: int, filters: int, size: int, stride: int, **more: Any) -> Case:
    return Case("transposed", batch, lengths, channels, filters, size, stride, operation="conv_transpose", **more)


CASES: tuple[Case, ...] = (
    # Both ends and the residual blocks of a vocoder's generator, its discriminator's last layers.
    Case("dense", 8, (32,), 80, 256, 7),
    Case("dense", 8, (256,), 128, 128, 3),
    Case("dense", 8, (256,), 128, 128, 1),
    Case("dense", 8, (2048,), 64, 64, 3),
    Case("dense", 8, (2048,), 64, 64, 1),
    Case("dense", 8, (4096,), 32, 32, 3),
    Case("dense", 8, (4096,), 32, 32, 1),
    Case("dense", 8, (8192,), 16, 16, 3),
    Case("dense", 8, (8192,), 16, 16, 1),
    Case("dense", 8, (8192,), 16, 1, 7),
    Case("dense", 8, (8192,), 32, 1, 7),
    Case("dense", 8, (8192,), 1, 16, 15),
    Case("dense", 8, (128,), 256, 256, 5),
    Case("dense", 8, (128,), 256, 1, 3),
    Case("dense", 64, (512,), 32, 64, 5, copies=4),
    Case("dense", 32, (512,), 16, 32, 5, copies=8, both=True),
    Case("dense", 8, (1024,), 64, 64, 4),
    Case("dense", 4, (1024,), 256, 256, 3),
    Case("dense", 8, (32, 32), 32, 64, 3),
    Case("dense", 4, (56, 56), 64, 64, 3),
    Case("strided", 16, (4096,), 64, 128, 4, 2),
    Case("strided", 8, (8192,), 1, 16, 16, 8),
    Case("strided", 8, (8192,), 16, 32, 3, 2),
    Case("strided", 8, (8192,), 16, 64, 8, 4),
    Case("strided", 8, (2048,), 64, 128, 3, 2, copies=4),
    Case("strided", 8, (2048,), 64, 128, 1, 2),
    Case("strided", 8, (512,), 128, 256, 4, 2),
    Case("strided", 8, (512,), 256, 256, 5, 4),
    Case("strided", 8, (32, 32), 64, 128, 3, 2, copies=4),
    Case("strided", 8, (64, 64), 3, 32, 7, 2),
    Case("dilated", 8, (256,), 128, 128, 3, dilation=3),
    Case("dilated", 8, (256,), 128, 128, 3, dilation=9),
    Case("dilated", 8, (2048,), 64, 64, 3, dilation=3),
    Case("dilated", 8, (2048,), 64, 64, 3, dilation=9, copies=4),
    Case("dilated", 8, (4096,), 32, 32, 3, dilation=3),
    Case("dilated", 8, (4096,), 32, 32, 3, dilation=9),
    Case("dilated", 8, (8192,), 16, 16, 3, dilation=3, copies=4),
    Case("dilated", 8, (8192,), 16, 16, 3, dilation=9),
    Case("dilated", 4, (4096,), 32, 64, 2, dilation=64),
    Case("dilated", 8, (1024,), 64, 128, 7, dilation=5),
    Case("grouped", 8, (8192,), 16, 64, 41, 4, groups=4, copies=4),
    Case("grouped", 8, (2048,), 64, 256, 41, 4, groups=16),
    Case("grouped", 8, (512,), 256, 256, 41, 4, groups=64),
    Case("grouped", 8, (4096,), 32, 32, 7, groups=8),
    Case("grouped", 8, (2048,), 64, 64, 3, groups=4, copies=4),
    Case("grouped", 8, (2048,), 64, 128, 1, groups=4),
    Case("grouped", 8, (1024,), 128, 128, 5, groups=8),
    Case("grouped", 8, (512,), 256, 256, 3, groups=2),
    Case("depthwise", 16, (8192,), 32, 32, 5, groups=32),
    Case("depthwise", 8, (4096,), 32, 32, 5, 2, groups=32),
    Case("depthwise", 8, (2048,), 32, 64, 5, groups=32),
    Case("depthwise", 8, (2048,), 64, 64, 3, groups=64, copies=4),
    Case("depthwise", 8, (2048,), 64, 64, 3, dilation=9, groups=64),
    Case("depthwise", 8, (512,), 256, 256, 7, groups=256),
    Case("depthwise", 8, (512,), 256, 256, 31, groups=256),
    Case("depthwise", 4, (56, 56), 64, 64, 3, groups=64, copies=4),
    Case("depthwise", 4, (56, 56), 64, 64, 3, 2, groups=64),
    Case("depthwise", 4, (28, 28), 128, 128, 5, groups=128),
    # Layers of image classifiers, in training batches.
    Case("image", 120, (14, 14), 32, 64, 3),
    Case("image", 64, (32, 32), 16, 16, 3),
    Case("image", 128, (28, 28), 8, 16, 3),
    Case("image", 8, (32, 32), 128, 128, 3),
    Case("image", 32, (14, 14), 256, 256, 3),
    Case("image", 64, (32, 32), 16, 32, 3, 2, copies=4),
    Case("image", 32, (28, 28), 128, 256, 3, 2),
    _up(16, (32,), 512, 256, 16, 8),
    _up(16, (256,), 256, 128, 16, 8),
    _up(16, (2048,), 128, 64, 4, 2),
    _up(16, (4096,), 64, 32, 4, 2),
    _up(8, (32,), 256, 128, 16, 8, copies=4, both=True),
    _up(8, (256,), 128, 64, 16, 8),
    _up(8, (2048,), 64, 32, 4, 2),
    _up(8, (4096,), 32, 16, 4, 2),
    _up(8, (512,), 128, 64, 8, 4),
    _up(8, (512,), 128, 64, 8, 4, groups=4),
    _up(8, (1024,), 64, 64, 3, 2),
    _up(8, (1024,), 64, 64, 2, 2),
    _up(4, (16, 16), 128, 64, 4, 2, copies=4),
    _up(4, (32, 32), 64, 32, 2, 2),
    _pool("avg", 8, (8192,), 16, 4, 4, copies=4),
    _pool("avg", 16, (4096,), 32, 4, 2),
    _pool("avg", 8, (2048,), 64, 2, 2),
    _pool("avg", 8, (512,), 256, 3, 1),
    _pool("avg", 8, (32, 32), 64, 2, 2),
    _pool("max", 8, (8192,), 16, 4, 4, copies=4),
    _pool("max", 8, (2048,), 64, 2, 2),
    _pool("max", 8, (2048,), 64, 3, 2),
    _pool("max", 8, (512,), 256, 5, 1),
    _pool("max", 8, (32, 32), 64, 2, 2),
    _pool("max", 4, (56, 56), 64, 3, 2),
)

FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(case.family for case in CASES))
