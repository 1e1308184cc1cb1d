"""Layers (4.1): pairs of pure functions, and how they compose."""

from jaxnet.layers.as_matrix import as_matrix
from jaxnet.layers.attention import attention
from jaxnet.layers.containers import chain, parallel, residual
from jaxnet.layers.conv import conv, conv_transpose
from jaxnet.layers.dense import dense
from jaxnet.layers.dropout import dropout
from jaxnet.layers.frozen import frozen
from jaxnet.layers.inside import Watched, watched
from jaxnet.layers.layer import About, Layer, Stream, layer, stateless
from jaxnet.layers.normalization import batch_norm, layer_norm
from jaxnet.layers.pooling import avg_pool, global_avg_pool, max_pool
from jaxnet.layers.positions import positions
from jaxnet.layers.precision import mixed_precision
from jaxnet.layers.prelu import prelu
from jaxnet.layers.raveled import raveled
from jaxnet.layers.repeat import repeat
from jaxnet.layers.shape import flatten, reshape
from jaxnet.layers.summary import Row, Summary, summary

__all__ = [
    "About",
    "Layer",
    "Row",
    "Stream",
    "Summary",
    "Watched",
    "as_matrix",
    "attention",
    "avg_pool",
    "batch_norm",
    "chain",
    "conv",
    "conv_transpose",
    "dense",
    "dropout",
    "flatten",
    "frozen",
    "global_avg_pool",
    "layer",
    "layer_norm",
    "max_pool",
    "mixed_precision",
    "parallel",
    "positions",
    "prelu",
    "raveled",
    "repeat",
    "reshape",
    "residual",
    "stateless",
    "summary",
    "watched",
]
