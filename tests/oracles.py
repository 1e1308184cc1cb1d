"""Literal float64 sums of the chapter's equations, in NumPy and plain loops: slow, and meant to be read.

Spatial hyperparameters are sequences with one entry a dimension; a padding is a (before, after) pair each.
Nothing here imports the library.
"""

import itertools
import math

import jax
import numpy as np


def by_platform(cpu, gpu):
    """A tolerance: a GPU's libraries add in orders of their own, and many layers make more of that than one does."""
    return gpu if jax.default_backend() == "gpu" else cpu


def positions(shape):
    """Every index of an array of this shape."""
    return itertools.product(*(range(n) for n in shape))


def conv(x, kernel, *, strides, padding, dilation, groups=1, padding_value=0.0):
    """Eq. 4.5 with its hyperparameters: y[j] = sum over k of w[k] x[S j + d k - P], x being P_v outside."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    batch, *lengths, channels = x.shape
    *taps, channels_per_group, filters = kernel.shape
    assert channels_per_group * groups == channels
    filters_per_group = filters // groups
    outputs = [
        math.floor((length + before + after - d * (k - 1) - 1) / s + 1)
        for length, k, s, (before, after), d in zip(lengths, taps, strides, padding, dilation, strict=True)
    ]
    y = np.zeros((batch, *outputs, filters))
    for b, j, k in itertools.product(range(batch), list(positions(outputs)), list(positions(taps))):
        at = [
            s * j_ + d * k_ - before for j_, k_, s, (before, _), d in zip(j, k, strides, padding, dilation, strict=True)
        ]
        inside = all(0 <= i < length for i, length in zip(at, lengths, strict=True))
        values = x[(b, *at)] if inside else np.full(channels, padding_value)
        for o in range(filters):
            first = (o // filters_per_group) * channels_per_group
            for c in range(channels_per_group):
                y[(b, *j, o)] += kernel[(*k, c, o)] * values[first + c]
    return y


def stuff(x, strides):
    """S - 1 zeros between the values of every spatial axis."""
    x = np.asarray(x, np.float64)
    batch, *lengths, channels = x.shape
    stuffed = np.zeros((batch, *(s * (n - 1) + 1 for n, s in zip(lengths, strides, strict=True)), channels))
    stuffed[(slice(None), *(slice(None, None, s) for s in strides), slice(None))] = x
    return stuffed


def conv_transpose(x, kernel, *, strides, padding, dilation, groups=1, padding_value=0.0):
    """Eq. 4.10: stuff with zeros, pad by P, then a convolution of stride 1 with the kernel as it is."""
    ones = (1,) * len(strides)
    return conv(
        stuff(x, strides),
        kernel,
        strides=ones,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_value=padding_value,
    )


def pool(x, window, *, strides, padding, kind):
    """Eq. 4.11, y[j] = 1/K sum over k of x[S j + k - P] with zeros outside; or the maximum, of what is inside."""
    x = np.asarray(x, np.float64)
    batch, *lengths, channels = x.shape
    outputs = [
        math.floor((length + before + after - k) / s) + 1
        for length, k, s, (before, after) in zip(lengths, window, strides, padding, strict=True)
    ]
    y = np.zeros((batch, *outputs, channels))
    for j in positions(outputs):
        seen = []
        for k in positions(window):
            at = [s * j_ + k_ - before for j_, k_, s, (before, _) in zip(j, k, strides, padding, strict=True)]
            if all(0 <= i < length for i, length in zip(at, lengths, strict=True)):
                seen.append(x[(slice(None), *at)])
        total = (sum(seen) if kind == "avg" else np.max(seen, axis=0)) if seen else np.zeros((batch, channels))
        y[(slice(None), *j)] = total / math.prod(window) if kind == "avg" else total
    return y


def max_pool_gradient(x, cotangent, window, *, strides, padding):
    """What each input of a maximum receives: a window's cotangent goes to its first NaN, or else its first maximum."""
    x, gradient = np.asarray(x, np.float64), np.zeros(np.shape(x))
    batch, *lengths, channels = x.shape
    for j in positions(np.shape(cotangent)[1:-1]):
        for b, c in positions((batch, channels)):
            best = None
            for k in positions(window):
                at = [s * j_ + k_ - before for j_, k_, s, (before, _) in zip(j, k, strides, padding, strict=True)]
                if all(0 <= i < length for i, length in zip(at, lengths, strict=True)):
                    here = (b, *at, c)
                    if best is None or x[here] > x[best] or (np.isnan(x[here]) and not np.isnan(x[best])):
                        best = here
            gradient[best] += cotangent[(b, *j, c)]
    return gradient


def same_padding(length, kernel_size, strides, dilation):
    """The least padding with which a convolution gives ceil(length / S) outputs; the odd value goes after."""
    for total in itertools.count():
        if (length + total - dilation * (kernel_size - 1) - 1) // strides + 1 >= math.ceil(length / strides):
            return total // 2, total - total // 2
    return None


def toeplitz(kernel, length, *, strides, padding, dilation, groups):
    """Eq. 4.8 for a 1-D kernel (K, C_in / g, C_out): blocks of (outputs, inputs), one a pair of channels."""
    taps, channels_per_group, filters = kernel.shape
    before, after = padding
    outputs = (length + before + after - dilation * (taps - 1) - 1) // strides + 1
    matrix = np.zeros((filters * outputs, channels_per_group * groups * length))
    for o, c, j, k in itertools.product(range(filters), range(channels_per_group), range(outputs), range(taps)):
        i = strides * j + dilation * k - before
        channel = o // (filters // groups) * channels_per_group + c
        if 0 <= i < length:
            matrix[o * outputs + j, channel * length + i] += kernel[k, c, o]
    return matrix
