"""Every row of the bad-input table that concerns losses and data: what is refused, by which class, in which words.

The number that begins an id is the row. A message says who refused, what came, what was wanted, and one hint.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import data, losses
from jaxnet.errors import ConfigError, DataError, DTypeError, ShapeError

PAIRED = ("mse", "mae", "cosine_similarity", "cosine_distance", "spectral_mse", "multi_resolution_stft")
CLASSED = ("softmax_cross_entropy", "cross_entropy", "hinge")
ARGUMENT = {"softmax_cross_entropy": "logits", "cross_entropy": "probabilities", "hinge": "scores"}

X = jnp.full((2, 4), 0.25)  # a prediction for every loss: signals, vectors, scores and probabilities
Y = jnp.array([0, 3])


def _of(name, *arguments, **options):
    if name == "multi_resolution_stft":
        options.setdefault("resolutions", ((4, 2, 4),))
    return lambda: getattr(losses, name)(*arguments, **options)


def _each(row, names, make, error, message):
    """A row of several losses; WHO and NAME in the message stand for the loss and its first argument."""
    return {
        f"{row}, {name}": (
            make(name),
            error,
            message.replace("WHO", name).replace("NAME", ARGUMENT.get(name, "prediction")),
        )
        for name in names
    }


def _target(name):
    return Y if name in CLASSED else X


LOSSES = {
    **_each(
        "7 int16",
        PAIRED + CLASSED,
        lambda name: _of(name, jnp.ones((2, 4), jnp.int16), _target(name)),
        DTypeError,
        r"^WHO: NAME must be floating point, got int16; convert with NAME\.astype\('float32'\) / 32768 .*wrap",
    ),
    **_each(
        "7 uint8 target",
        PAIRED,
        lambda name: _of(name, X, jnp.ones((2, 4), jnp.uint8)),
        DTypeError,
        r"^WHO: target must be floating point, got uint8; convert with .* / 256",
    ),
    **_each(
        "7 integer target",
        PAIRED,
        lambda name: _of(name, X, jnp.ones((2, 4), int)),
        DTypeError,
        r"^WHO: target must be floating point, got int32; convert with target\.astype\('float32'\)$",
    ),
    **_each(
        "7 exchanged",
        CLASSED,
        lambda name: _of(name, Y, X),
        DTypeError,
        r"^WHO: NAME must be floating point, got int32 \(2,\), and for the target float32 \(2, 4\); if they are exchanged, ",
    ),
    **_each(
        "14 a column of labels",
        CLASSED,
        lambda name: _of(name, X, Y[:, None]),
        ShapeError,
        r"^WHO: integer labels must have shape \(2,\), .*got \(2, 1\); take the only column, target\[\.\.\., 0\]",
    ),
    **_each(
        "7 complex",
        PAIRED + CLASSED,
        lambda name: _of(name, X + 0j, _target(name)),
        DTypeError,
        r"^WHO: NAME must be floating point, got complex64",
    ),
    **_each(
        "8 float64 without x64",
        PAIRED + CLASSED,
        lambda name: _of(name, np.full((2, 4), 0.25), _target(name)),
        UserWarning,
        r"^WHO: NAME is float64, and JAX computes in float32 here; convert it yourself with \.astype\('float32'\)",
    ),
    **_each(
        "8 a label beyond int32",
        CLASSED,
        lambda name: _of(name, X, np.array([0, 2**32 + 1])),
        DataError,
        r"^WHO: label 4294967297 at index 1 is no class; there are 4, 0 to 3 ",
    ),
    **_each(
        "30 masked prediction",
        PAIRED + CLASSED,
        lambda name: _of(name, np.ma.masked_equal(np.float32([[1, 2, 3, 1000]] * 2), 1000), _target(name)),
        DataError,
        r"^WHO: NAME is a masked array with 2 of 8 entries masked, .*would be lost; fill them with \.filled\(value\), or drop",
    ),
    **_each(
        "30 masked target",
        PAIRED + CLASSED,
        lambda name: _of(name, X, np.ma.masked_equal(np.asarray(_target(name)), np.asarray(_target(name)).max())),
        DataError,
        r"^WHO: target is a masked array with \d of \d entries masked",
    ),
    **_each(
        "11 list",
        PAIRED + CLASSED,
        lambda name: _of(name, [[0.25] * 4] * 2, _target(name)),
        DTypeError,
        r"^WHO: NAME must be an array, got list; pass one array.* numpy\.asarray",
    ),
    **_each(
        "11 None",
        PAIRED + CLASSED,
        lambda name: _of(name, X, None),
        DTypeError,
        r"^WHO: target must be an array, got NoneType; pass a jax or numpy array",
    ),
    **_each(
        "11 str",
        PAIRED + CLASSED,
        lambda name: _of(name, "x", _target(name)),
        DTypeError,
        r"^WHO: NAME must be an array, got str; pass a jax or numpy array",
    ),
    **_each(
        "12 big-endian",
        PAIRED + CLASSED,
        lambda name: _of(name, np.ones((2, 4), ">f4"), _target(name)),
        DTypeError,
        r"^WHO: NAME has byte order '>f4', which JAX cannot read; convert with \.astype\('float32'\)",
    ),
    **_each(
        "12 big-endian labels",
        CLASSED,
        lambda name: _of(name, X, np.array([0, 1], ">i4")),
        DTypeError,
        r"^WHO: target has byte order '>i4', .*\.astype\('int32'\)",
    ),
    **_each(
        "12 objects",
        PAIRED + CLASSED,
        lambda name: _of(name, np.array([[1, 2], [3, None]], object), _target(name)),
        DTypeError,
        r"^WHO: NAME has dtype object, which is no number; build one rectangular numeric array, .*numpy\.stack",
    ),
    **_each(
        "13 label of a class too many",
        CLASSED,
        lambda name: _of(name, X, jnp.array([0, 4])),
        DataError,
        r"^WHO: label 4 at index 1 is no class; there are 4, 0 to 3 \(1 such labels\); .*ignore_label",
    ),
    **_each(
        "13 label deep in a sequence",
        CLASSED,
        lambda name: _of(name, X[None], np.array([[0, 9]], np.int32)),
        DataError,
        r"^WHO: label 9 at index \(0, 1\) is no class; there are 4",
    ),
    **_each(
        "14 label -1",
        CLASSED,
        lambda name: _of(name, X, jnp.array([-1, -1])),
        DataError,
        r"^WHO: label -1 at index 0 is no class; there are 4, 0 to 3 \(2 such labels\); .*ignore_label",
    ),
    **_each(
        "14 label that is neither a class nor the one to ignore",
        CLASSED[:2],
        lambda name: _of(name, X, jnp.array([-100, -1]), ignore_label=-100),
        DataError,
        r"^WHO: label -1 at index 1 is no class",
    ),
    **_each(
        "14 ignore_label of distributions",
        CLASSED[:2],
        lambda name: _of(name, X, X, ignore_label=0),
        ConfigError,
        r"^WHO: ignore_label goes with integer labels; give ignored rows a weight",
    ),
    **_each(
        "14 ignore_label that is no integer",
        CLASSED[:2],
        lambda name: _of(name, X, Y, ignore_label=0.5),
        ConfigError,
        r"^WHO: ignore_label must be an integer of 32 bits, got 0\.5",
    ),
    **_each(
        "14 ignore_label that is a bool",
        CLASSED[:2],
        lambda name: _of(name, X, Y, ignore_label=True),
        ConfigError,
        r"^WHO: ignore_label must be an integer of 32 bits, got True",
    ),
    **_each(
        "14 ignore_label beyond 32 bits",
        CLASSED[:2],
        lambda name: _of(name, X, Y, ignore_label=2**31),
        ConfigError,
        r"^WHO: ignore_label must be an integer of 32 bits, got 2147483648",
    ),
    **_each(
        "15 float labels",
        CLASSED,
        lambda name: _of(name, X, jnp.array([0.0, 3.0])),
        ShapeError,
        r"^WHO: floating-point targets are distributions .* \(2, 4\), got \(2,\); convert labels with \.astype\(int\)",
    ),
    **_each(
        "15 bool labels",
        CLASSED,
        lambda name: _of(name, X, jnp.array([True, False])),
        DTypeError,
        r"^WHO: target must be integer labels or floating-point distributions, got bool",
    ),
    **_each(
        "15 one-hot integers",
        CLASSED,
        lambda name: _of(name, X, jnp.eye(4, dtype=int)[Y]),
        ShapeError,
        r"^WHO: integer labels must have shape \(2,\).*got \(2, 4\); distributions must be floating point",
    ),
    "15 one-hot floats, hinge": (
        _of("hinge", X, jnp.eye(4)[Y]),
        DTypeError,
        r"^hinge: label must be integers of shape \(2,\), got float32 \(2, 4\)",
    ),
    **_each(
        "15 target that is no distribution",
        CLASSED[:2],
        lambda name: _of(name, X, 2 * X),
        DataError,
        r"^WHO: target must be distributions, values from 0 to 1 that sum to 1 .* got a minimum of 0\.5 and a sum of 2",
    ),
    **_each(
        "15 target below 0",
        CLASSED[:2],
        lambda name: _of(name, X, jnp.array([[1.5, -0.5, 0, 0]] * 2)),
        DataError,
        r"^WHO: target must be distributions, .* got a minimum of -0\.5 and a sum of 1",
    ),
    **_each(
        "16 (B, 1) against (B,)",
        PAIRED,
        lambda name: _of(name, jnp.ones((4, 1)), jnp.ones(4)),
        ShapeError,
        r"^WHO: prediction \(4, 1\) and target \(4,\) must have one shape; they are never broadcast; .*"
        r"target\.reshape\(\(4, 1\)\)",
    ),
    **_each(
        "16 (B, 1) labels",
        CLASSED,
        lambda name: _of(name, X, Y[:, None]),
        ShapeError,
        r"^WHO: integer labels must have shape \(2,\), one a row of NAME \(2, 4\), got \(2, 1\)",
    ),
    **_each(
        "15 a NaN beside what is no distribution",
        CLASSED[:2],
        lambda name: _of(name, X, jnp.array([[np.nan] * 4, [1.0] * 4])),
        DataError,
        r"^WHO: target must be distributions, .* got a minimum of 1 and a sum of 4",
    ),
    "17 logits for probabilities": (
        _of("cross_entropy", jnp.array([[2.0, -1.0]]), jnp.array([0])),
        DataError,
        r"^cross_entropy: probabilities must be distributions.* minimum of -1 and a sum of 1; logits belong in softmax",
    ),
    **_each(
        "20 no axis of classes",
        CLASSED,
        lambda name: _of(name, jnp.float32(1), jnp.int32(0)),
        ShapeError,
        r"^WHO: NAME must have the axes \(\.\.\., classes\), got shape \(\)",
    ),
    **_each(
        "20 no classes",
        CLASSED,
        lambda name: _of(name, jnp.ones((2, 0)), Y),
        ShapeError,
        r"^WHO: NAME must have the axes \(\.\.\., classes\), got shape \(2, 0\)",
    ),
    **_each(
        "21 empty batch",
        PAIRED + CLASSED,
        lambda name: _of(name, X[:0], _target(name)[:0]),
        ShapeError,
        r"^WHO: the batch is empty.*; the mean of no examples is NaN",
    ),
    **_each(
        "43 reduction",
        PAIRED + CLASSED,
        lambda name: _of(name, X, _target(name), reduction="avg"),
        ConfigError,
        r"^WHO: reduction must be one of 'mean', 'sum', 'none', got 'avg'",
    ),
    **_each(
        "43 axis that is none",
        ("cosine_similarity", "cosine_distance"),
        lambda name: _of(name, X, X, axis=2),
        ShapeError,
        r"^WHO: there is no axis 2 in shape \(2, 4\)",
    ),
    **_each(
        "43 axis below all",
        ("cosine_similarity", "spectral_mse"),
        lambda name: _of(name, X, X, axis=-3),
        ConfigError,
        r"^WHO: axis must be an integer >= -2, got -3",
    ),
    "43 vectors of scalars": (
        _of("cosine_distance", jnp.float32(1), jnp.float32(1)),
        ShapeError,
        r"^cosine_distance: prediction and target must hold vectors, got scalars",
    ),
    "43 time over the batch": (
        _of("spectral_mse", X, X, axis=-2),
        ShapeError,
        r"^spectral_mse: signals must have the axes .* got \(2, 4\) with time on axis -2; add a batch axis with x\[None\]",
    ),
    "43 time axis that is none": (
        _of("spectral_mse", X, X, axis=2),
        ShapeError,
        r"^spectral_mse: signals must have the axes .* got \(2, 4\) with time on axis 2",
    ),
    **_each(
        "43 signal without a batch",
        ("spectral_mse", "multi_resolution_stft"),
        lambda name: _of(name, X[0], X[0]),
        (ShapeError, ConfigError),
        r"^WHO: .*",
    ),
    "43 no resolution": (
        _of("multi_resolution_stft", X, X, resolutions=()),
        ConfigError,
        r"^multi_resolution_stft: at least one resolution \(dft, hop, window\) is needed, got none",
    ),
    "43 one resolution, not in a sequence": (
        _of("multi_resolution_stft", X, X, resolutions=(8, 2, 8)),
        ConfigError,
        r"^multi_resolution_stft: resolutions must be a sequence of \(dft, hop, window\), got \(8, 2, 8\)",
    ),
    "43 resolution of two": (
        _of("multi_resolution_stft", X, X, resolutions=((8, 2),)),
        ConfigError,
        r"^multi_resolution_stft: resolutions must be a sequence of \(dft, hop, window\), got \(\(8, 2\),\)",
    ),
    "43 window beyond its DFT": (
        _of("multi_resolution_stft", X, X, resolutions=((8, 2, 9),)),
        ConfigError,
        r"stft_magnitude: a window of 9 samples does not fit a DFT of 8 points",
    ),
    "43 hop 0": (
        _of("stft_magnitude", X, dft=8, hop=0, window=8),
        ConfigError,
        r"^stft_magnitude: hop must be an integer >= 1, got 0",
    ),
    "43 dft 2.5": (
        _of("stft_magnitude", X, dft=2.5, hop=1, window=2),
        ConfigError,
        r"^stft_magnitude: dft must be an integer >= 1, got 2\.5; sizes are Python integers",
    ),
    "43 stft without a batch": (
        _of("stft_magnitude", X[0], dft=4, hop=1, window=2),
        ShapeError,
        r"^stft_magnitude: x must have the axes \(batch, time\) or .* got shape \(4,\)",
    ),
    "43 floor 0": (
        _of("multi_resolution_stft", X, X, floor=0.0),
        ConfigError,
        r"^multi_resolution_stft: floor must be a finite number in \(0, inf\], got 0\.0",
    ),
    "43 margin 0": (_of("hinge", X, Y, margin=0), ConfigError, r"^hinge: margin must be .* in \(0, inf\], got 0"),
    "43 margin nan": (
        _of("hinge", X, Y, margin=float("nan")),
        ConfigError,
        r"^hinge: margin must be a finite number .* got nan",
    ),
    "43 variant": (
        _of("hinge", X, Y, variant="crammer"),
        ConfigError,
        r"^hinge: variant must be one of 'weston_watkins', 'crammer_singer', got 'crammer'",
    ),
    "43 smoothing above 1": (
        _of("softmax_cross_entropy", X, Y, label_smoothing=1.5),
        ConfigError,
        r"^softmax_cross_entropy: label_smoothing must be a finite number in \[0, 1\], got 1\.5",
    ),
    "47 traced smoothing": (
        lambda: jax.jit(lambda a: losses.softmax_cross_entropy(X, Y, label_smoothing=a))(0.1),
        ConfigError,
        r"^softmax_cross_entropy: label_smoothing must be a finite number in \[0, 1\], got a traced float32",
    ),
}

N = np.arange(10, dtype=np.int32)


def _split(*arrays, **options):
    return lambda: data.split(*arrays, **options)


def _batches(*arrays, **options):  # the call alone, not the first batch, must refuse
    return lambda: data.batches(*arrays, **{"batch_size": 2, **options})


DATA = {
    "8 ids beyond int32, batches": (
        _batches(np.array([1, 2**40])),
        DataError,
        r"^batches: array 0 holds int64 values up to 1099511627776, which do not fit int32; .*jax_enable_x64",
    ),
    "8 ids below int32, batches": (
        _batches(N, np.full(10, -(2**40))),
        DataError,
        r"^batches: array 1 holds int64 values .* do not fit int32",
    ),
    "8 float64, batches": (
        _batches(np.ones(4)),
        UserWarning,
        r"^batches: array 0 is float64, and JAX computes in float32 here; .*\.astype\('float32'\).*jax_enable_x64",
    ),
    "11 ragged list, split": (
        _split([[1, 2], [3]]),
        DTypeError,
        r"^split: array 0 must be an array, got list; pass one array.* rows",
    ),
    "11 None, batches": (_batches(N, None), DTypeError, r"^batches: array 1 must be an array, got NoneType; pass a"),
    "11 generator, split": (
        _split(i for i in range(3)),
        DTypeError,
        r"^split: array 0 must be an array, got generator",
    ),
    "11 text, split": (_split(np.array(["a", "b"])), DTypeError, r"^split: array 0 has dtype <U1, which is no number"),
    "12 big-endian, batches": (
        _batches(N, N.astype(">i2")),
        DTypeError,
        r"^batches: array 1 has byte order '>i2', which JAX cannot read; convert with \.astype\('int16'\)",
    ),
    "12 objects, split": (
        _split(np.array([1, None], object)),
        DTypeError,
        r"^split: array 0 has dtype object, which is no number; build one rectangular",
    ),
    "30 masked, batches": (
        _batches(N, np.ma.masked_less(N, 3)),
        DataError,
        r"^batches: array 1 is a masked array with 3 of 10 entries masked, .*\.filled\(value\)",
    ),
    "30 masked, split": (_split(np.ma.masked_less(N, 3)), DataError, r"^split: array 0 is a masked array"),
    "30 masked classes, split": (
        _split(N, stratify=np.ma.masked_less(N, 3)),
        DataError,
        r"^split: stratify is a masked array",
    ),
    "32 NaN, batches": (
        _batches(N, np.where(N[:, None] == [3, 7], np.nan, np.float32(1))),
        DataError,
        r"^batches: array 1 holds nan at index \(3, 0\) \(2 such values\); .* drop those samples, or replace",
    ),
    "32 infinity, batches": (
        _batches(np.array([1, np.inf], np.float32)),
        DataError,
        r"^batches: array 0 holds inf at index \(1,\) \(1 such values\)",
    ),
    "35 seed 1.5, split": (_split(N, seed=1.5), ConfigError, r"^split: seed must be an integer >= 0, got 1\.5"),
    "35 seed -1, batches": (_batches(N, seed=-1), ConfigError, r"^batches: seed must be an integer >= 0, got -1"),
    "35 seed None, split": (_split(N, seed=None), ConfigError, r"^split: seed must be an integer >= 0, got None"),
    "35 seed 2**64, batches": (
        _batches(N, seed=2**64),
        ConfigError,
        r"^batches: seed must be below 2\*\*64, got 18446744073709551616",
    ),
    "40 no array, split": (_split(), DataError, r"^split: at least one array is needed, got none"),
    "40 no array, batches": (_batches(), DataError, r"^batches: at least one array is needed, got none"),
    "40 empty, split": (_split(np.ones((0, 3), "f4")), DataError, r"^split: the data are empty, shape \(0, 3\)"),
    "40 empty, batches": (_batches(N[:0]), DataError, r"^batches: the data are empty, shape \(0,\)"),
    "40 lengths, split": (_split(N, N[:9]), DataError, r"^split: the arrays have 10, 9 samples; each needs one entry"),
    "40 lengths, batches": (_batches(N, N[:9]), DataError, r"^batches: the arrays have 10, 9 samples; each needs one"),
    "40 batch beyond the data, dropped": (
        _batches(N, batch_size=11, drop_last=True),
        DataError,
        r"^batches: a batch of 11 does not fill from 10 samples, .* use a batch_size of at most 10, or drop_last=F",
    ),
    "40 scalar, split": (_split(np.float32(1)), DataError, r"^split: array 0 is a scalar; samples lie along the first"),
    "40 fewer samples than parts": (
        _split(N[:2]),
        DataError,
        r"^split: 2 samples cannot fill 3 parts; give fewer parts",
    ),
    "40 classes of other length": (
        _split(N, stratify=N[:9]),
        DataError,
        r"^split: stratify must have one class a sample, shape \(10,\), got \(9,\)",
    ),
    "40 classes of rank 2": (
        _split(N, stratify=N[:, None]),
        DataError,
        r"^split: stratify must have one class a sample, shape \(10,\), got \(10, 1\)",
    ),
    "43 batch_size 0": (_batches(N, batch_size=0), ConfigError, r"^batches: batch_size must be an integer >= 1, got 0"),
    "43 batch_size 2.5": (_batches(N, batch_size=2.5), ConfigError, r"^batches: batch_size must be .* >= 1, got 2\.5"),
    "43 batch_size True": (_batches(N, batch_size=True), ConfigError, r"^batches: batch_size must be .* got True"),
    "43 epochs 0": (_batches(N, epochs=0), ConfigError, r"^batches: epochs must be an integer >= 1, got 0"),
    "43 shuffle 1": (_batches(N, shuffle=1), ConfigError, r"^batches: shuffle must be True or False, got 1"),
    "43 drop_last None": (_batches(N, drop_last=None), ConfigError, r"^batches: drop_last must be True or False, got"),
    "43 replacement in order": (
        _batches(N, replacement=True, shuffle=False),
        ConfigError,
        r"^batches: replacement draws samples at random, so shuffle must be True",
    ),
    "43 fractions that miss a part": (
        _split(N, fractions=(0.7, 0.2)),
        ConfigError,
        r"^split: fractions must sum to 1, got \(0\.7, 0\.2\) with sum 0\.9",
    ),
    "43 fractions in percent": (
        _split(N, fractions=(70, 10, 20)),
        ConfigError,
        r"^split: fractions must be a finite number in \[0, 1\], got 70",
    ),
    "43 negative fraction": (
        _split(N, fractions=(1.1, -0.1)),
        ConfigError,
        r"^split: fractions must be a finite number in \[0, 1\], got 1\.1",
    ),
    "43 one fraction": (
        _split(N, fractions=0.7),
        ConfigError,
        r"^split: fractions must be a sequence, one share a part, got 0\.7",
    ),
    "43 no fraction": (_split(N, fractions=()), ConfigError, r"^split: fractions must sum to 1, got \(\) with sum 0"),
}

BUILTIN = {
    ShapeError: ValueError,
    ConfigError: ValueError,
    DataError: ValueError,
    DTypeError: TypeError,
    (ShapeError, ConfigError): ValueError,
}
ROWS = LOSSES | DATA


@pytest.mark.parametrize(("call", "error", "message"), ROWS.values(), ids=ROWS.keys())
def test_bad_input_is_refused(call, error, message):
    if error is UserWarning:
        with pytest.warns(UserWarning, match=message):
            call()
        return
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, BUILTIN[error])


def test_the_table_has_its_rows():
    rows = {int(name.split()[0]) for name in ROWS}
    assert rows >= {7, 8, 11, 12, 13, 14, 15, 16, 17, 20, 21, 32, 35, 40, 43, 47}


@pytest.mark.parametrize("name", PAIRED + CLASSED)
def test_shapes_and_dtypes_are_refused_under_jit_as_well(name):
    loss = jax.jit(getattr(losses, name))
    with pytest.raises(ShapeError, match=rf"^{name}: "):
        loss(X, _target(name)[:1])
    with pytest.raises(DTypeError, match=rf"^{name}: .* must be floating point, got int32"):
        loss(X.astype(int), _target(name))
    with pytest.raises(ShapeError, match=rf"^{name}: the batch is empty"):
        loss(X[:0], _target(name)[:0])


@pytest.mark.parametrize("name", CLASSED)
def test_labels_are_refused_outside_jit_while_differentiating(name):
    with pytest.raises(DataError, match=rf"^{name}: label 4 at index 1 is no class"):
        jax.grad(getattr(losses, name))(X, np.array([0, 4], np.int32))


@pytest.mark.parametrize("name", PAIRED + CLASSED)
@pytest.mark.parametrize("held", [np.nan, np.inf])
def test_row_32_values_that_are_not_finite_show_in_the_loss(name, held):
    loss = jax.jit(getattr(losses, name), static_argnames="reduction")
    # In example 1's own class, except that an infinite lead there rightly costs the hinge loss nothing.
    x = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, (2, 4)), jnp.float32).at[1, 0].set(held)
    target = Y if name == "hinge" else Y[::-1] if name in CLASSED else X * jnp.arange(4.0)[None]
    values = loss(x, target, reduction="none")
    assert np.isfinite(values[0])
    assert not np.isfinite(values[1])
