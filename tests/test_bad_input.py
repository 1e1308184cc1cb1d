"""Bad input to layers, kernels, activations and keys: the class of the error, and what its message tells.

Each row's number is that of the survey of what other libraries do with the same input; most of them return something
silently for at least half of these.
"""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import (
    activations,
    backprop,
    diagnostics,
    initializers,
    interop,
    kernels,
    layers,
    losses,
    optimizers,
    sizes,
    training,
)
from jaxnet.errors import ConfigError, DataError, DTypeError, JaxnetError, ShapeError, named

X = jnp.ones((2, 10, 3))
KERNEL = jnp.ones((3, 3, 4))
KEY = jax.random.key(0)


def init(layer, x=X, key=KEY):
    return lambda: layer.init(key, x)


def apply(layer, bad, good=X, **options):
    """Parameters made for a good input meet a bad one."""
    params, state = layer.init(KEY, good)
    return lambda: layer.apply(params, state, bad, **{"train": False, **options})


def conv(x=X, kernel=KERNEL, **options):
    return partial(kernels.conv, x, kernel, **options)


MASKED = np.ma.masked_greater(np.float32([[[1, 2, 3]] * 10] * 2), 2)
RULES = ("sgd", "adam", "adagrad", "rmsprop", "adabelief", "angulargrad")


def stepped(optimizer):
    def update(grads, params):
        rule = getattr(optimizers, optimizer)(0.1)
        return rule.update(grads, rule.init([MASKED.data]), params)

    return update


def masked(name, call, *arguments, what="x"):
    """A row for an entry that is given an array with a mask."""
    message = rf"{what} is a masked array with \d+ of \d+ entries masked, .*\.filled\(value\)"
    return (f"masked, {name}", partial(call, *arguments), DataError, message)


def with_params(layer, params, state=(), x=X):
    return lambda: layer.apply(params, state, x, train=False)


DEEP = layers.chain(layers.dense(3), layers.residual(layers.chain(jnp.tanh, layers.conv(3, 3, padding="same"))))


class Own:
    """A layer as other libraries have them."""

    def init(self, key, x):
        return (), ()

    def apply(self, params, state, x):
        return x, state


APPLY = Own().apply
DENSE_PARAMS = layers.dense(3).init(KEY, X)[0]

# (row and what is wrong, call, class, pattern in the message)
ROWS = [
    ("1 rank 2 to conv", conv(X[0]), ShapeError, r"conv: x must have 3 axes \(batch, length, channels\), got shape \(10, 3\)"),
    ("1 rank 4 to a 1-D layer", init(layers.conv(4, 3), X[None]), ShapeError, r"conv: x must have 3 axes .*got shape \(1, 2, 10, 3\)"),
    ("1 rank 3 to a 2-D layer", init(layers.conv(4, (3, 3))), ShapeError, r"\(batch, height, width, channels\)"),
    ("2 wrong channels", conv(jnp.ones((2, 10, 5))), ShapeError, r"conv: the input has 5 channels, the kernel was made for 3 \(input \(2, 10, 5\), kernel \(3, 3, 4\), groups 1\); channels come last"),
    ("2 channels first", conv(jnp.ones((2, 3, 10))), ShapeError, r"axis 1 fits: is the input channels-first\? transpose it"),
    ("2 features of dense", apply(layers.dense(4), X[..., :2]), ShapeError, r"dense: the input has 2 features, the kernel was made for 3"),
    ("3 kernel longer than the input", conv(X[:, :2]), ShapeError, r"d \(K - 1\) \+ 1 = 3 > D_in \+ padding = 2 .*eq\. 4\.6"),
    ("3 transposed, kernel longer", lambda: kernels.conv_transpose(X[:, :1], KERNEL), ShapeError, r"eq\. 4\.10\); PyTorch's padding p"),
    ("4 strides 0", lambda: layers.conv(4, 3, strides=0), ConfigError, r"conv: strides must be an integer >= 1, got 0"),
    ("4 strides -1", lambda: layers.conv_transpose(4, 3, strides=-1), ConfigError, r"conv_transpose: strides must be .* got -1"),
    ("5 dilation 0", lambda: layers.conv(4, 3, dilation=0), ConfigError, r"conv: dilation must be an integer >= 1, got 0"),
    ("6 groups that do not divide the input", init(layers.conv(4, 3, groups=2)), ShapeError, r"groups=2 must divide the 3 input channels"),
    ("6 groups that do not divide the filters", lambda: layers.conv(4, 3, groups=3), ShapeError, r"groups=3 must divide the 4 filters"),
    ("6 groups of a kernel", conv(groups=2), ShapeError, r"groups=2 must divide both the 3 input channels and the 4 filters"),
    ("7 int16 sound", conv(X.astype(jnp.int16)), DTypeError, r"conv: x must be floating point, got int16; convert with x\.astype\('float32'\) / 32768 \(int16 arithmetic would wrap\)"),
    ("7 uint8 image", init(layers.conv(4, 3), X.astype(jnp.uint8)), DTypeError, r"got uint8; convert with x\.astype\('float32'\) / 256"),
    ("7 int to an activation", lambda: activations.relu(jnp.arange(3)), DTypeError, r"relu: x must be floating point, got int32"),
    ("8 int64 that overflows", lambda: layers.flatten().apply((), (), np.array([[2**40]]), train=False), DataError, r"holds int64 values up to 1099511627776, which do not fit int32; enable 64-bit"),
    ("9 pool window longer than the input", lambda: kernels.avg_pool(X, 11), ShapeError, r"avg_pool: the kernel is longer than the padded input"),
    ("9 max_pool, window in the border", lambda: kernels.max_pool(X, 2, padding=2), ConfigError, r"max_pool: padding .* reaches the window"),
    ("10 pool strides 0", lambda: layers.avg_pool(2, strides=0), ConfigError, r"avg_pool: strides must be an integer >= 1, got 0"),
    ("11 a string", conv("abc"), DTypeError, r"conv: x must be an array, got str; pass a jax or numpy array"),
    ("11 None", apply(layers.dense(2), None), DTypeError, r"dense: x must be an array, got NoneType"),
    ("11 a ragged list", apply(layers.dense(2), [[1.0], [1.0, 2.0]]), DTypeError, r"got list; pass one array, numpy\.asarray\(\.\.\.\); its rows"),
    ("12 big-endian", conv(np.ones((2, 10, 3), ">f4")), DTypeError, r"byte order '>f4', which JAX cannot read; convert with \.astype\('float32'\)"),
    *(masked(layer.name, apply(layer, MASKED)) for layer in (
        layers.dense(2), layers.conv(4, 3), layers.conv_transpose(4, 3), layers.avg_pool(2), layers.max_pool(2), layers.prelu(), layers.batch_norm(),
        layers.layer_norm(), layers.rms_norm(), layers.group_norm(1), layers.instance_norm(), layers.dropout(0.5), layers.flatten(), layers.chain(layers.dense(2)), layers.mixed_precision(layers.dense(2)),
    )),
    masked("conv's kernel", conv(kernel=np.ma.masked_equal(np.ones((3, 3, 4), np.float32), 1)), what="kernel"),
    masked("relu", activations.relu, MASKED),
    masked("softmax", activations.softmax, MASKED),
    masked("an example", layers.dense(2).init, KEY, MASKED),
    masked("suspect_labels", diagnostics.suspect_labels, MASKED[0], np.zeros(10), np.zeros(10)),
    masked("from_torch", partial(interop.from_torch, net=layers.dense(2, bias=False), x=np.ones((1, 3), np.float32)), {"weight": MASKED[0, :2]}, what="weight"),
    masked("frozen", layers.frozen(layers.dense(3, bias=False), {"kernel": MASKED[0]}).init, KEY, np.ones((1, 10), np.float32), what="params"),
    *(masked(f"{optimizer}'s params", getattr(optimizers, optimizer)(0.1).init, [MASKED], what=r"\[0\] of the parameters") for optimizer in RULES),
    *(masked(f"{optimizer}'s gradients", stepped(optimizer), [MASKED], given, what=".* of the gradients") for optimizer in RULES for given in (None, [MASKED.data])),
    masked("apply_updates", optimizers.apply_updates, [MASKED.data], [MASKED], what=".* of the updates"),
    masked("the parameters of apply_updates", optimizers.apply_updates, [MASKED], [MASKED.data], what=".* of the parameters"),
    masked("ravel", optimizers.ravel, [MASKED], what=".* of the parameters"),
    masked("trace", backprop.trace, jnp.sum, MASKED, what=""),
    ("12 objects", conv(np.ones((2, 10, 3), object)), DTypeError, r"conv: x has dtype object, which is no number"),
    ("43 a shape for an example", lambda: layers.dense(2).init(0, (1, 3)), DTypeError, r"pass jax\.ShapeDtypeStruct\(\(1, 3\), jax\.numpy\.float32\)"),
    ("43 slope of several channels", lambda: activations.leaky_relu(X, jnp.ones(3)), ShapeError, r"leaky_relu: slope must be one number, got shape \(3,\); layers\.prelu"),
    ("43 slope NaN", lambda: activations.leaky_relu(X, float("nan")), ConfigError, r"leaky_relu: slope must be a finite number"),
    ("43 sizes: strides 0", lambda: sizes.conv_length(10, 3, strides=0), ConfigError, r"conv: strides must be an integer >= 1, got 0"),
    ("43 sizes: kernel size 2.5", lambda: sizes.conv_length(10, 2.5), ConfigError, r"conv: kernel_size must be an integer >= 1, got 2\.5"),
    ("43 sizes: dilation 0", lambda: sizes.conv_transpose_length(10, 3, dilation=0), ConfigError, r"dilation must be an integer >= 1"),
    ("6 sizes: groups", lambda: sizes.conv_parameters(3, 8, 5, groups=2), ConfigError, r"groups=2 must divide both the 3 input channels"),
    ("43 initializer's mode", lambda: initializers.VarianceScaling(1.0, "fanin", "normal")(KEY, (3, 4)), ConfigError, r"mode must be one of 'fan_in'"),
    ("43 initializer's distribution", lambda: initializers.VarianceScaling(1.0, "fan_in", "flat")(KEY, (3, 4)), ConfigError, r"distribution must be one of 'normal', 'uniform'"),
    ("residual of two outputs", init(layers.residual(layers.parallel(jnp.tanh, jnp.sin))), ShapeError, r"residual: the branch gives a tuple of .* and the shortcut float32 .*one structure: .*concatenate"),
    ("33 dropout rate 1.5", lambda: layers.dropout(1.5), ConfigError, r"dropout: rate must be a finite number in \[0, 1\], got 1\.5"),
    ("33 dropout rate -0.1", lambda: layers.dropout(-0.1), ConfigError, r"dropout: rate must be .* got -0\.1"),
    ("33 dropout rate NaN", lambda: layers.dropout(float("nan")), ConfigError, r"dropout: rate must be .* got nan"),
    ("34 dropout without a key", lambda: layers.dropout(0.5).apply((), (), X, train=True), ConfigError, r"dropout: .*no key came; call net\.apply\(params, state, x, train=True, key="),
    ("35 key is None", init(layers.dense(2), key=None), ConfigError, r"dense: key must be a JAX PRNG key, got None; pass jax\.random\.key\(seed\)"),
    ("35 key is 1.5", init(layers.dense(2), key=1.5), ConfigError, r"dense: key must be a JAX PRNG key, got 1\.5"),
    ("35 several keys", init(layers.dense(2), key=jax.random.split(KEY, 3)), ConfigError, r"must be one key, got an array of keys of shape \(3,\)"),
    ("35 seed 2**32", init(layers.dense(2), key=2**32), ConfigError, r"seed 4294967296 is outside 0\.\.2\*\*32 - 1"),
    ("35 seed -1", init(layers.chain(jnp.tanh), key=-1), ConfigError, r"chain: seed -1 is outside"),
    ("35 a float array as key", init(layers.dense(2), key=jnp.ones(2)), ConfigError, r"key must be a JAX PRNG key, got float32 of shape \(2,\)"),
    ("43 no filters", lambda: layers.conv(0, 3), ConfigError, r"conv: filters must be an integer >= 1, got 0"),
    ("43 kernel size 0", lambda: layers.conv(4, 0), ConfigError, r"conv: kernel_size must be an integer >= 1, got 0"),
    ("43 kernel size 2.5", lambda: layers.conv(4, 2.5), ConfigError, r"kernel_size must be an integer >= 1, got 2\.5"),
    ("43 units -1", lambda: layers.dense(-1), ConfigError, r"dense: units must be an integer >= 1, got -1"),
    ("43 units True", lambda: layers.dense(True), ConfigError, r"dense: units must be an integer >= 1, got True"),
    ("43 padding -1", lambda: layers.conv(4, 3, padding=-1), ConfigError, r"conv: padding must be an integer >= 0, got -1"),
    ("43 padding SMAE", lambda: layers.conv(4, 3, padding="SMAE"), ConfigError, r"padding must be one of 'valid', 'same', 'causal', got 'SMAE'"),
    ("43 padding SAME", lambda: layers.conv(4, 3, padding="SAME"), ConfigError, r"got 'SAME'; write 'same'"),
    ("43 padding of three", lambda: layers.conv(4, 3, padding=(1, 2, 3)), ConfigError, r"padding of one dimension is an integer or \(before, after\), got \(1, 2, 3\)"),
    ("43 2-D padding of two integers", lambda: layers.conv(4, (3, 3), padding=(1, 2)), ConfigError, r"2 pairs \(before, after\), got \(1, 2\)"),
    ("43 strides of another rank", lambda: layers.conv(4, (3, 3), strides=(1, 2, 3)), ConfigError, r"strides must be an integer or 2 of them"),
    ("43 padding value NaN", lambda: layers.conv(4, 3, padding_value=float("nan")), ConfigError, r"padding_value must be a finite number"),
    ("43 initializer is a string", lambda: layers.dense(3, kernel_init="zeros"), ConfigError, r"kernel_init must be callable, got 'zeros'"),
    ("43 bias is a string", lambda: layers.dense(3, bias="no"), ConfigError, r"dense: bias must be True or False, got 'no'"),
    ("43 repeat 0", lambda: layers.repeat(jnp.tanh, 0), ConfigError, r"repeat: n must be an integer >= 1, got 0"),
    ("43 decay 1", lambda: layers.batch_norm(decay=1), ConfigError, r"batch_norm: decay must be a finite number in \[0, 1\), got 1"),
    ("43 epsilon 0", lambda: layers.layer_norm(epsilon=0), ConfigError, r"layer_norm: epsilon must be a finite number in \(0, inf\]"),
    ("43 two sizes -1", lambda: layers.reshape(-1, -1), ConfigError, r"reshape: at most one size may be -1"),
    ("45 batch norm of one value", apply(layers.batch_norm(), X[:1, 0], X, train=True), ShapeError, r"at least two values a channel, got 1 \(input \(1, 3\)\).*use a larger batch, or layer_norm"),
    ("47 train is missing", lambda: layers.dense(3).apply(DENSE_PARAMS, (), X), ConfigError, r"dense: apply takes .*, and train did not come; call y, state = net"),
    ("47 train is 1", lambda: layers.dense(3).apply(DENSE_PARAMS, (), X, train=1), ConfigError, r"dense: train must be True or False, got 1"),
    ("47 train is traced", lambda: jax.jit(lambda t: layers.chain(layers.dense(3)).apply((DENSE_PARAMS,), ((),), X, train=t))(True), ConfigError, r"chain: train must be True or False, got a traced value; .*static_argnames"),
    ("params of another layer", with_params(layers.dense(3), {"w": jnp.ones((3, 3))}), ConfigError, r"dense: params must be a dict of kernel, bias, got a dict of w"),
    ("params of another kernel", with_params(layers.conv(4, 5), {"kernel": KERNEL, "bias": jnp.ones(4)}), ShapeError, r"the kernel \(3, 3, 4\) is another layer's; this one has kernel_size=\(5,\)"),
    ("params of a shorter chain", with_params(layers.chain(jnp.tanh, jnp.tanh), ((),), ((), ())), ConfigError, r"chain: params must be a tuple of 2, one entry a part, got tuple of 1"),
    ("state of another network", with_params(layers.chain(jnp.tanh), ((),), ()), ConfigError, r"chain: state must be a tuple of 1"),
    ("state None", with_params(layers.dense(3), DENSE_PARAMS, None), ConfigError, r"dense: state must be \(\), got None"),
    ("params of another depth", with_params(layers.repeat(layers.dense(3), 4), layers.repeat(layers.dense(3), 5).init(KEY, X)[0]), ConfigError, r"repeat: .*stacked 4 deep, got a leaf of shape \(5,"),
    ("residual that changes the shape", init(layers.residual(layers.conv(3, 3))), ShapeError, r"residual: the branch gives \(2, 8, 3\) and the shortcut \(2, 10, 3\)"),
    ("repeat that changes the shape", init(layers.repeat(layers.dense(4), 2)), ShapeError, r"repeat: the layer turns float32 \(2, 10, 3\) into float32 \(2, 10, 4\)"),
    ("an empty chain", lambda: layers.chain(), ConfigError, r"chain: at least one part"),
    ("a list in a chain", lambda: layers.chain([layers.dense(3)]), ConfigError, r"unpack the list: chain\(\*layers\)"),
    ("a number in a chain", lambda: layers.chain(layers.dense(3), 7), ConfigError, r"chain\[1\]: a part must be a layer or a function of its input, got 7"),
    ("a layer not called", lambda: layers.chain(layers.flatten), ConfigError, r"flatten is what makes the layer, not the layer: call it, layers\.flatten\(\.\.\.\)"),
    ("a pair in a chain", lambda: layers.chain((lambda key, x: ((), ()), APPLY)), ConfigError, r"chain\[0\]: a part must be .*got a tuple of 2, .*layers\.layer\('name', init, apply\)"),
    ("an optimizer in a chain", lambda: layers.chain(jnp.tanh, optimizers.sgd(0.1)), ConfigError, r"got an optimizer; an optimizer is no part of a network"),
    ("eight parts", lambda: layers.chain(dict.fromkeys("abcdefgh", X)), ConfigError, r"got a dict of a, b, c, d, e, f, g, h; give the network"),
    ("nine parts", lambda: layers.chain(dict.fromkeys("abcdefghi", X)), ConfigError, r"got a dict of a, b, c, d, e, f, g, h and 1 more; give the network"),
    ("parameters in a chain", lambda: layers.chain((DENSE_PARAMS, ())), ConfigError, r"got a tuple of 2, first a dict of kernel, bias; give the network of these .*training\.pretrained\("),
    ("a class in a chain", lambda: layers.chain(Own), ConfigError, r"got the class Own; make a layer of its two functions"),
    ("a class to call in a chain", lambda: layers.chain(functools.partial), ConfigError, r"got the class partial; give one of its objects, partial\(\.\.\.\)"),
    ("an object with init and apply", lambda: layers.chain(Own()), ConfigError, r"got a Own; make a layer of its two functions"),
    ("an initializer's name", lambda: layers.dense(1, kernel_init="he_normal"), ConfigError, r"initializers\.he_normal\(\.\.\.\)$"),
    ("a name in a chain", lambda: layers.chain("relu"), ConfigError, r"got 'relu'; give it itself, not its name: activations\.relu"),
    ("params of a network", with_params(layers.dense(3), (DENSE_PARAMS,)), ConfigError, r"got a tuple of a dict of kernel, bias; pass"),
    ("an array for params", with_params(layers.chain(jnp.tanh), X), ConfigError, r"got float32 \(2, 10, 3\); pass"),
    ("strides of PyTorch", lambda: layers.conv(4, 3, stride=2), TypeError, r"^conv\(\) got an unexpected keyword argument; stride= is strides= here$"),
    ("momentum of PyTorch", lambda: layers.batch_norm(momentum=0.1), TypeError, r"momentum= is decay=, which is PyTorch's 1 - m"),
    ("a typing error", lambda: layers.conv(4, 3, stridse=2), TypeError, r"unexpected keyword argument 'stridse'.*; it is called conv\(filters, kernel_size, \*, strides, padding,"),
    ("images under a window of one number", init(layers.conv(4, 3), X[:, :, None]), ShapeError, r"conv: x must have 3 axes \(batch, length, channels\), got shape \(2, 10, 1, 3\); a window over 2 axes has 2 numbers, such as \(3, 3\)$"),
    ("images under a pool of one number", apply(layers.max_pool(2), X[:, :, None]), ShapeError, r"a window over 2 axes has 2 numbers, such as \(3, 3\)$"),
    ("images padded as a signal", apply(layers.pad(1), X[:, :, None]), ShapeError, r"pad: .*got shape \(2, 10, 1, 3\); give ndim=2, or a pair \(before, after\) for each$"),
    ("images upsampled as a signal", apply(layers.upsample(2), X[:, :, None]), ShapeError, r"; give 2 factors, one an axis$"),
    ("a loss without a target", lambda: losses.mse(X), TypeError, r"; it is called mse\(prediction, target, "),
    ("an option of the step in train", lambda: training.train(None, None, None, freeze="0"), TypeError, r"^train\(\) got an unexpected keyword argument 'freeze'; it is called train\("),
    ("a signal under a window of two", init(layers.conv(4, (3, 3)), X[0]), ShapeError, r"channels\), got shape \(10, 3\)$"),
    ("inputs and outputs", lambda: layers.dense(3, 4), TypeError, r"but 2 were given; sizes of the input are left out, the example for init tells them; it is called dense\(units, \*,"),
    ("an activation in its units' place", lambda: layers.dense(3, "relu"), TypeError, r"but 2 were given; it is called dense\("),
    ("channels of a norm", lambda: layers.batch_norm(3), TypeError, r"but 1 was given; sizes of the input are left out"),
    ("a name that a chain does not take", lambda: layers.chain(jnp.tanh, name="tanh"), TypeError, r"; it is called chain\(\*parts\)$"),
    ("an update without a state", lambda: optimizers.sgd(0.1).update([X]), TypeError, r"; it is called update\(updates, state, params, \*\*extra_args\)$"),
    ("an axis by position", lambda: layers.flatten(1), TypeError, r"but 1 was given; it is called flatten\(\)$"),
    ("two names that are none", lambda: layers.dense(3, use_bias=False, in_features=2), TypeError, r"in_features= is left out, the example for init tells it, here"),
    ("parameters for a rate", lambda: optimizers.sgd(DENSE_PARAMS, 0.1), ConfigError, r"^sgd: learning_rate must be one number, got a dict of kernel, bias; parameters come after it: optimizer\.init\(params\)$"),
    ("a network for a rate", lambda: optimizers.sgd(layers.dense(1)), ConfigError, r"got the layer dense; pass a float"),
    ("a tree for a size", lambda: layers.dense([DENSE_PARAMS]), ConfigError, r"units must be an integer >= 1, got a list of a dict of kernel, bias;"),
    ("one number of a tree", lambda: layers.dropout(np.float32(1.5)), ConfigError, r"must be a finite number in \[0, 1\], got (np\.float32\()?1\.5"),
    ("data in the place of the loss", lambda: training.fit(layers.dense(1), (X, X), loss=losses.mse, optimizer=optimizers.sgd(0.1), epochs=1), TypeError, r"multiple values for argument 'loss'; it is called fit\(net, loss, optimizer, data, \*, epochs, "),
    ("an option of the step", lambda: training.fit(layers.dense(1), losses.mse, optimizers.sgd(0.1), (X, X), epochs=1, freeze="0"), TypeError, r"; freeze= goes into step=training\.stepping\(freeze=\.\.\.\); it is called fit\("),
    ("an option of keeping", lambda: training.fit(layers.dense(1), losses.mse, optimizers.sgd(0.1), (X, X), epochs=1, resume="same"), TypeError, r"; resume= goes into keep=training\.keep\(resume=\.\.\.\)"),
    ("an option of arrays", lambda: training.fit(layers.dense(1), losses.mse, optimizers.sgd(0.1), (X, X), epochs=1, shuffle=False), TypeError, r"; shuffle= goes into data=training\.arrays\(shuffle=\.\.\.\)"),
    ("a typing error beside an argument of arrays too", lambda: training.fit(layers.dense(1), losses.mse, optimizers.sgd(0.1), (X, X), epochs=1, batch_size=2, validtion=X), TypeError, r"'validtion'[^;]*; it is called fit\("),
    ("a TypeError of the inside", lambda: named("f")(lambda x: len(x))(3), TypeError, r"^object of type 'int' has no len\(\)$"),
    ("rate of PyTorch", lambda: optimizers.adam(lr=0.1), TypeError, r"lr= is learning_rate= here$"),
    ("parallel shapes", init(layers.chain(layers.parallel(layers.dense(3), layers.dense(4), combine="sum"))), ShapeError, r"parallel: outputs to add must have one shape"),
    ("parallel combine", lambda: layers.parallel(jnp.tanh, combine="add"), ConfigError, r"combine must be one of 'tuple', 'concatenate', 'sum', 'mean', got 'add'"),
    ("dtypes mixed by hand", apply(layers.dense(2), X.astype(jnp.bfloat16)), DTypeError, r"dense: dtypes differ: x bfloat16, kernel float32; cast the input, or let layers\.mixed_precision"),
    ("mixed precision in int8", lambda: layers.mixed_precision(jnp.tanh, compute=jnp.int8), DTypeError, r"compute must be a floating-point dtype"),
    ("slopes of other channels", apply(layers.prelu(per_channel=True), X[..., :2]), ShapeError, r"prelu: the slope has shape \(3,\), an input of shape \(2, 10, 2\) wants \(2,\)"),
    ("reshape that does not fit", init(layers.chain(layers.reshape(7, 5))), ShapeError, r"reshape: an example of shape \(10, 3\) \(30 values\) does not fit \(7, 5\)"),
    ("global pooling of nothing", init(layers.chain(layers.global_avg_pool()), X[:, :0]), ShapeError, r"something to average, got shape \(2, 0, 3\)"),
    ("matrix of a curve", lambda: layers.as_matrix(jnp.tanh, (), X[:1]), ConfigError, r"as_matrix: tanh is not linear"),
    ("matrix of a bend above 0", lambda: layers.as_matrix(activations.relu, (), X[:1, :1, 0]), ConfigError, r"relu is not linear"),
    ("matrix of a bend below 0", lambda: layers.as_matrix(lambda x: activations.relu(-x), (), X[:1, :1, 0]), ConfigError, r"is not linear"),
    ("matrix of a batch", lambda: layers.as_matrix(layers.dense(3), DENSE_PARAMS, X), ShapeError, r"a batch of one, got shape \(2, 10, 3\)"),
    ("he of a vector", lambda: initializers.he_normal()(KEY, (3,), jnp.float32), ShapeError, r"variance scaling needs a shape"),
    ("who is deep inside", apply(DEEP, X.astype(jnp.bfloat16)), DTypeError, r"^chain\[0\]: dense: dtypes differ"),
    ("who is deeper inside", with_params(DEEP, (DENSE_PARAMS, {"branch": ((), {"w": X}), "shortcut": ()}), ((), {"branch": ((), ()), "shortcut": ()})), ConfigError, r"^chain\[1\]/residual\.branch/chain\[1\]: conv: params must be"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_bad_input_is_refused_with_a_telling_message(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)
    if error is not TypeError:
        assert isinstance(caught.value, JaxnetError)
        assert isinstance(caught.value, TypeError if error is DTypeError else ValueError)


def test_float64_that_jax_would_round_is_announced():
    params, state = layers.dense(2).init(KEY, X)
    with pytest.warns(UserWarning, match=r"x is float64, and JAX computes in float32 here"):
        layers.dense(2).apply(params, state, np.ones((2, 10, 3)), train=False)


def test_checks_cost_nothing_at_run_time():
    """No check leaves an operation in the program: the layer's is the bare product and sum."""
    layer = layers.dense(4)
    params, _ = layer.init(KEY, X)
    ours = jax.make_jaxpr(lambda p, x: layer.apply(p, (), x, train=False)[0])(params, X)
    bare = jax.make_jaxpr(lambda p, x: x @ p["kernel"] + p["bias"].reshape(1, 1, -1))(params, X)
    names = [equation.primitive.name for equation in ours.eqns]
    assert names == [equation.primitive.name for equation in bare.eqns]


def test_masked_data_are_a_verdict_of_the_diagnosis():
    pair = MASKED[:, 0], MASKED[:, 0, :1]
    found = diagnostics.diagnose(layers.dense(1), losses.mse, optimizers.sgd(0.1), pair, progress=False).verdicts[0]
    assert found.name == "wrong_input"
    assert "data is a masked array with" in found.evidence


def test_seeds_and_keys_of_both_kinds_are_taken():
    layer = layers.dense(2)
    expected = layer.init(jax.random.key(7), X)[0]["kernel"]
    for key in (7, np.int64(7), jax.random.PRNGKey(7)):
        np.testing.assert_array_equal(layer.init(key, X)[0]["kernel"], expected)
