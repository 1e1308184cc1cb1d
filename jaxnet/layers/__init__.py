"""Layers (4.1): pairs of pure functions, and how they compose."""

from jaxnet.layers.as_matrix import as_matrix as as_matrix
from jaxnet.layers.containers import chain as chain
from jaxnet.layers.containers import parallel as parallel
from jaxnet.layers.containers import residual as residual
from jaxnet.layers.conv import conv as conv
from jaxnet.layers.conv import conv_transpose as conv_transpose
from jaxnet.layers.dense import dense as dense
from jaxnet.layers.dropout import dropout as dropout
from jaxnet.layers.frozen import frozen as frozen
from jaxnet.layers.inside import Watched as Watched
from jaxnet.layers.inside import watched as watched
from jaxnet.layers.layer import Layer as Layer
from jaxnet.layers.layer import layer as layer
from jaxnet.layers.layer import stateless as stateless
from jaxnet.layers.normalization import batch_norm as batch_norm
from jaxnet.layers.normalization import layer_norm as layer_norm
from jaxnet.layers.pooling import avg_pool as avg_pool
from jaxnet.layers.pooling import global_avg_pool as global_avg_pool
from jaxnet.layers.pooling import max_pool as max_pool
from jaxnet.layers.precision import mixed_precision as mixed_precision
from jaxnet.layers.prelu import prelu as prelu
from jaxnet.layers.raveled import raveled as raveled
from jaxnet.layers.repeat import repeat as repeat
from jaxnet.layers.shape import flatten as flatten
from jaxnet.layers.shape import reshape as reshape
from jaxnet.layers.summary import Row as Row
from jaxnet.layers.summary import Summary as Summary
from jaxnet.layers.summary import summary as summary

__all__ = [
    "Layer",
    "Row",
    "Summary",
    "Watched",
    "as_matrix",
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
    "prelu",
    "raveled",
    "repeat",
    "reshape",
    "residual",
    "stateless",
    "summary",
    "watched",
]
