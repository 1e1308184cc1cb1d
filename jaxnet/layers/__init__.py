"""Layers (4.1): pairs of pure functions, and how they compose."""

from jaxnet.layers.as_matrix import as_matrix
from jaxnet.layers.attention import attention
from jaxnet.layers.batch_norm import batch_norm
from jaxnet.layers.containers import chain, parallel, residual
from jaxnet.layers.conv import conv, conv_transpose
from jaxnet.layers.dense import dense
from jaxnet.layers.dropout import dropout
from jaxnet.layers.elman import elman
from jaxnet.layers.embedding import embedding, tied
from jaxnet.layers.frozen import frozen
from jaxnet.layers.group_norm import group_norm, instance_norm
from jaxnet.layers.gru import gru
from jaxnet.layers.inside import Watched, watched
from jaxnet.layers.layer import About, Layer, Memory, Merged, Stream, layer, stateless
from jaxnet.layers.layer_norm import layer_norm
from jaxnet.layers.low_rank import low_rank
from jaxnet.layers.lstm import lstm
from jaxnet.layers.merged import merged
from jaxnet.layers.on_first import on_first
from jaxnet.layers.pad import pad
from jaxnet.layers.pooling import avg_pool, global_avg_pool, max_pool
from jaxnet.layers.positions import positions
from jaxnet.layers.precision import mixed_precision
from jaxnet.layers.prelu import prelu
from jaxnet.layers.raveled import raveled
from jaxnet.layers.recurrent import Cell, rnn
from jaxnet.layers.repeat import repeat
from jaxnet.layers.rms_norm import rms_norm
from jaxnet.layers.shape import flatten, reshape
from jaxnet.layers.snake import snake
from jaxnet.layers.spectral_norm import spectral_norm
from jaxnet.layers.streaming import stream_state, streaming
from jaxnet.layers.summary import Row, Summary, summary
from jaxnet.layers.upsample import upsample
from jaxnet.layers.weight_norm import weight_norm

__all__ = [
    "About",
    "Cell",
    "Layer",
    "Memory",
    "Merged",
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
    "elman",
    "embedding",
    "flatten",
    "frozen",
    "global_avg_pool",
    "group_norm",
    "gru",
    "instance_norm",
    "layer",
    "layer_norm",
    "low_rank",
    "lstm",
    "max_pool",
    "merged",
    "mixed_precision",
    "on_first",
    "pad",
    "parallel",
    "positions",
    "prelu",
    "raveled",
    "repeat",
    "reshape",
    "residual",
    "rms_norm",
    "rnn",
    "snake",
    "spectral_norm",
    "stateless",
    "stream_state",
    "streaming",
    "summary",
    "tied",
    "upsample",
    "watched",
    "weight_norm",
]
