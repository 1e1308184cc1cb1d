"""How narrow groups are made wide enough for a matrix product, on a CPU."""

from jaxnet.kernels.lowering.table import Problem


def pack_and_fold(p: Problem) -> tuple[int, int]:
    """How many narrow groups to compute as one, with zeros between, and how many outputs at once.

    Products get wider by both. Without strides, packing p groups and folding c outputs costs p c ceil((K + c - 1) / c)
    / K times the arithmetic; of the pairs that make a product of y or x 32 wide, the cheapest is taken. Against groups
    as they are: 8x4096, 32 to 32, g 8: K 7 (c 8) 1.9 times for y, K 3 (p 4, c 2) 1.6; 8x2048, 64 to 64, K 3, g 4 (c 2)
    1.25; 8x1024, 128 to 128, K 5, g 8 (c 2) 1.2. For w 4 channels gain 1.3 times with K 7 and 1.13 with K 3 (c 4), and
    more than 4 lose.
    """
    geometry, widest = p.geometry, p.widest
    if p.strided:
        return 1, _fold(p)
    folds = [1]
    if geometry.ndim == 1 and p.dilation == 1:
        folds = [c for c in (1, 2, 4, 8) if geometry.outputs[0] % c == 0]
    if p.slot == "w" and max(folds) >= 4:
        return 1, 4 if widest <= 4 and geometry.size[0] >= 3 else 1
    # Where outputs cannot be folded, products of 16: 8x4096, 32 to 32, g 8: y 4.5 times with K 3, w of 8, 1.2 times.
    target = 8 if p.slot == "w" else 32 if max(folds) > 1 else 16
    packs = [n for n in range(1, max(1, target // widest) + 1) if geometry.groups % n == 0]
    pairs = [(n, c) for n in packs for c in ([1] if p.slot == "w" else folds) if n * c * widest <= max(target, widest)]

    def cost(pair):
        n, c = pair
        return -n * c, n * c * -(-(geometry.size[0] + c - 1) // c), -n

    return min(pairs, key=cost)


def _fold(p: Problem) -> int:
    """How many outputs of a long strided kernel to compute at once.

    8x8192, 16 to 64 channels, K 41, S 4, g 4, and 8x512, 256 to 256, g 64: 1.3 and 1.6 times as fast for y, 1.3 and 1.6
    for x, 1.3 and 1.9 for w. Dense convolutions only lose.
    """
    if p.geometry.ndim > 1 or p.dilation > 1:
        return 1
    (size,), (stride,), (outputs,) = p.geometry.size, p.geometry.strides, p.geometry.outputs
    columns = stride * p.channels if p.slot == "x" else p.filters
    count = 2 if p.slot == "x" else 4
    while count > 1 and (outputs % count or columns * count > 32 or stride * (count - 1) > 0.3 * size):
        count //= 2
    return count
