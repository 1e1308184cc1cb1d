"""The numbers at which something is called wrong, and where each comes from. They are the same for every network.

"Measured" are figures of `python -m benchmarks diagnosis`, over all its seeds and sizes.
"""

GAIN = 4.0
"""A layer's gain is off beyond this factor either way. Common initializers have gains from 0.58 (PyTorch's default,
uniform within 1 / sqrt(fan_in)) to 1.41 (He et al. 2015)."""

INPUT_RMS = 5.0
"""Root mean square of the input. LeCun et al. 1998 (Efficient BackProp, 4.3) want mean 0 and variance 1; a unit of gain
1 with a normal input of this size has |tanh| > 0.95 on 71 % of the samples."""

GRADIENT_RATIO = 1e-3
"""Gradient at the first layer over that at the last, and its inverse. Measured: healthy networks of 3 to 18 layers have
0.1 to 20, twenty sigmoid layers 1e-13, a linear stack of gain 2 4e4."""

DEAD = 0.5
"""Share of a layer's units that are dead: half the layer's capacity. Lu et al. 2019 call a network dead at all of them;
a run is not called so if it trains."""

TRAINED = 0.5
"""A run has trained once its loss is below this share of the best constant prediction's. Measured: healthy runs end
below 0.02, runs with a pathology and without overfitting at 0.84 or more."""

OTHER_RATE = 0.5
"""A rate is wrong if another one reaches less than this share of the loss, in a quarter of the steps. Halving a loss
that has not trained is what `TRAINED` asks of a run."""

GAP = 0.3
"""Overfitting: validation loss minus training loss, as a share of the best constant prediction's loss. Measured: 30
samples give more than 2, healthy runs less than 0.02."""

PLATEAU = 0.05
"""A curve is flat if over its last third it falls by less than this share of the best constant prediction's loss."""

STUCK = 0.9
"""Next to nothing was learned while the loss is above this share of the best constant prediction's. Measured: a rate
1,000 times too small ends at 0.93 or more."""

RISE = 1.5
"""A loss that ends this many times above where it began diverges; above its own minimum, its rate is too large."""

NOISE = 0.3
"""Deviation of the loss from batch to batch, as a share of the best constant prediction's loss."""

WRONG_LABELS = 0.1
"""Share of labels that both the network and the neighbours contradict. Northcutt et al. 2021 (arXiv 2103.14749)
estimate 0.15 % to 10.1 % in ten much-used test sets. Measured: with 40 % wrong, 34 % to 38 % are found."""
