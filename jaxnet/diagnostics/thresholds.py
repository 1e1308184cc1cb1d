"""The numbers at which something is called wrong, and where each comes from. They are the same for every network.

"Measured" are figures of `python -m benchmarks diagnosis`, over all its seeds and sizes, or, where that is said, of one
seed of its small networks.
"""

GAIN = 4.0
"""A layer's gain is off beyond this factor either way. Initializers that look at the fan-in have gains from 0.58
(PyTorch's default, uniform within 1 / sqrt(fan_in)) to 1.41 (He et al. 2015). normal(0.02), as GPT-2 has it, has 0.55
at width 768 and 0.16 at width 64: too small there, unless norms or residual connections undo it."""

INPUT_RMS = 5.0
"""Root mean square of the input. LeCun et al. 1998 (Efficient BackProp, 4.3) want mean 0 and variance 1; a unit of gain
1 with a normal input of this size has |tanh| > 0.95 on 71 % of the samples. Its inverse, for inputs that are too small,
and both for targets, are a judgement: by symmetry."""

GRADIENT_RATIO = 1e-3
"""Gradient at the first layer over that at the last, and its inverse. Measured: healthy networks of 3 to 18 layers have
0.1 to 20, twenty sigmoid layers 1e-13, a linear stack of gain 2 4e4."""

DEAD = 0.5
"""Share of a layer's units that are dead: half the layer's capacity. Lu et al. 2019 call a network dead at all of them;
a run is not called so if it trains. Measured, one seed: healthy rectifiers have no dead unit, 256 units on 30 samples
21 % at the end, those killed by a bias or by the rate 90 % or more."""

TRAINED = 0.5
"""A run has trained once its loss is below this share of the best constant prediction's. Measured, of
validation: healthy runs end below 0.02, runs with a pathology and without overfitting at 0.84 or more. Of training, one
seed: 40 % wrong labels, which are partly learned by heart, end at 0.67, others that are stuck at 0.92 or more."""

OTHER_RATE = 0.5
"""A rate is wrong if another one reaches less than this share of the loss, in a quarter of the steps; of a run that
has trained, in as many. Halving a loss
that has not trained is what `TRAINED` asks of a run. Measured, one seed: a wrong rate leaves room down to 0.01 of the
loss or less; where the network or the data are at fault (sigmoid layers, dead units, a narrow network, wrong labels)
none of the six others gets below 0.99."""

GAP = 0.3
"""Overfitting: validation loss minus training loss, as a share of the best constant prediction's loss. Measured: 30
samples give more than 2, healthy runs less than 0.02."""

PLATEAU = 0.05
"""A curve is flat if over its last third it falls by less than this share of the best constant prediction's loss. At
this pace it would take ten thirds to fall from 1 to `TRAINED`, more than three times the run. Measured, one seed: the
runs that are stuck fall by 0.03 or less."""

STUCK = 0.9
"""Next to nothing was learned while the loss is above this share of the best constant prediction's. Measured: a rate
1,000 times too small ends at 0.93 or more."""

RISE = 1.5
"""A loss that ends this many times above where it began diverges; above its own minimum, its rate is too large.
Measured, one seed: healthy losses end at most 1.19 times above their minimum, a rate 100 times too large 1e32 times
above the best constant prediction's."""

NOISE = 0.3
"""Deviation of the loss from batch to batch, as a share of the best constant prediction's loss. A judgement: no planted
case has a noisy gradient. Measured, one seed: at the end healthy runs of batches of 32 vary by 0.02 or less, runs that
have not trained by up to 0.12."""

WRONG_LABELS = 0.1
"""Share of labels that both the network and the neighbours contradict. Northcutt et al. 2021 (arXiv 2103.14749)
estimate 0.15 % to 10.1 % in ten much-used test sets. Measured: with 40 % wrong, 34 % to 38 % are found."""

OUTSIDE = 0.05
"""Share of the targets that an output cannot reach. A judgement: a sigmoid in front of targets of mean 0 and deviation
1 leaves 66 % outside, a tanh 32 %; a few outliers are no fault of the output."""

SCORE = 0.1
"""By how much accuracy or R2 must rise for another loss, rate or larger network to be called for; by half of it for
none of a rectifier at the end. By this much a published
mending had to help for the fault to count as one, in the programs of `python -m benchmarks diagnosis --programs`."""

CONSTANT = 0.999
"""Share of the best constant prediction's loss below which the lowest value of a loss leaves something to be learned. A
judgement: soft targets of a high temperature leave 0.99."""

LEFT = 0.1
"""A run that trained is compared with others where more than this share of the best constant prediction's loss is left.
A judgement: below it there is little to be had."""

UNSEEN = 0.02
"""Share of the validation samples whose classes no training sample has. A judgement: a rare class may be missing by
chance; data sorted by class and split at the end miss at least one whole class."""

NOTHING = 0.98
"""A validation loss of this share of the best constant prediction's, or more, has learned nothing that holds for other
samples. A judgement: a hundredth above chance. Of few samples it is less by the deviation that chance gives it, about
1 / sqrt(samples)."""

WITNESS = 0.05
"""What neighbours or a linear fit may explain of targets that have nothing to do with the inputs, of the errors of a
constant prediction, beyond three standard errors of chance. A judgement."""

DUPLICATES = 0.1
"""Share of validation samples that are training samples. A judgement: real data have some, iris 1 of 150."""

MULTIPLE = 3
"""Data of which each value is there more often than this have few values, and those are in both sets by nature."""

DECAY = 0.3
"""What a decay takes off the weights over the whole run, for it to be tried without. A judgement: 1e-2 at a rate of
1e-3, the usual, takes 0.5 % in 500 steps."""

REACH = 0.05
"""The updates of half a run are too small if to first order they can have taken off no more than this share of the best
constant prediction's loss. A judgement: at this pace it takes ten such halves to fall from 1 to `TRAINED`."""

PULL = 1.0
"""A gradient is not small if, to first order, weights that move by their own length along it take off this many times
the best constant prediction's loss. A judgement; measured, one network: 6.5 before the first step."""

FALLEN = 10.0
"""A rate has fallen if it was this many times what it is in the end. A judgement."""

CLEARLY = 0.8
"""What a run without regularization must leave of the loss, and no more, for the regularization to be named although
the run has not trained without it either. A judgement: a fifth, below the lowest that the run had in its last third."""

EVALUATION = 0.5
"""The loss in training is below this share of that in evaluation, of the same samples, if the two are of different
networks. A judgement; what dropout does is the other way round."""

FAR = 100
"""How many times its own length a curve is drawn out to say when the run would have trained. A judgement."""

WHOLE = 0.4
"""Share of the training set in one step from which an epoch is but a step or two. A judgement."""

BORN_DEAD = 0.9
"""`DEAD` where all inputs have one sign: there half of the first units with a bias of 0 are off by construction,
whatever their weights."""

EXACT = 0.97
"""The certainty of a verdict from which nothing else is looked for that may be its consequence: those that follow from
what the output, the loss or the labels are, and not from how a run went."""

HELPS = 0.9
"""A remedy that leaves more than this share of the loss that the run left has not helped. A judgement."""

NEAR = 3.0
"""Of the remedies that mend the run, those that leave this many times what the best leaves speak less for their
verdict. A judgement."""
