"""Snake, upsample and pad against PyTorch and their equations; what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import interop, layers
from jaxnet.errors import ConfigError, DTypeError, ShapeError

RANDOM = np.random.default_rng(0)


def snake(x, alpha):
    return layers.snake().apply({"alpha": alpha}, (), x, train=True)[0]


def pytorchs(torch, f, x, cotangent):
    """Values and gradients of a function of channels-first tensors, channels last."""
    given = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
    y = f(given)
    y.backward(torch.tensor(np.moveaxis(cotangent(y.numel()).reshape(y.movedim(1, -1).shape), -1, 1).copy()))
    return np.moveaxis(y.detach().numpy(), 1, -1), np.moveaxis(given.grad.numpy(), 1, -1)


def ours(layer, x, cotangent):
    y, pull = jax.vjp(jax.jit(lambda x: layer.apply((), (), x, train=True)[0]), jnp.asarray(x))
    return y, pull(jnp.asarray(cotangent(y.size).reshape(y.shape)))[0]


def waves(size):
    return np.cos(np.arange(size))


@pytest.mark.peers
def test_snakes_values_and_gradients_are_the_equations(x64):
    """As BigVGAN's code has it, without its 1e-9 in the denominator."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    x, alpha = RANDOM.standard_normal((3, 5, 4)) * 3, np.array([1.0, -0.5, 3.0, 1e-3])
    tx, ta = (torch.tensor(a, requires_grad=True) for a in (x, alpha))
    expected = tx + torch.sin(ta * tx) ** 2 / ta
    cotangent = waves(x.size).reshape(x.shape)
    expected.backward(torch.tensor(cotangent))
    y, pull = jax.vjp(jax.jit(snake), jnp.asarray(x), jnp.asarray(alpha))
    dx, d_alpha = pull(jnp.asarray(cotangent))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(dx, tx.grad.numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(d_alpha, ta.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_snake_at_its_edges():
    """alpha 0 is the limit, by alpha too; and nothing is NaN at any x."""
    x = jnp.asarray([[-np.inf, -3e38, -2.0, 0.0, 2.0, 1e30, np.inf]], jnp.float32).T
    for alpha in (0.0, 1.0, 1e-30, 3e38):
        y, pull = jax.vjp(lambda x, a=alpha: snake(x, jnp.full(1, a, jnp.float32)), x)
        assert not np.isnan(y).any()
        assert not np.isnan(pull(jnp.ones_like(y))[0]).any()
        far = np.array([0, 1, 5, 6])  # where the wave is nothing beside x, but for 1e-30, of which 1e30 is 1 / alpha
        wanted = np.float64(x[far]) * np.array([1, 1, 1 + np.sin(1.0) ** 2 if alpha == 1e-30 else 1, 1])[:, None]
        np.testing.assert_allclose(y[far], wanted, rtol=1e-6)
    slope = jax.grad(lambda a: snake(jnp.full((1, 1), 3.0), a).sum())
    np.testing.assert_allclose(slope(jnp.zeros(1)), 9.0)
    np.testing.assert_allclose(slope(jnp.full(1, 1e-3)), 9.0, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_alphas_gradient_is_summed_in_float32(dtype):
    x = jnp.ones((6000, 1), dtype)
    got = jax.jit(jax.grad(lambda a: snake(x, a).astype(jnp.float32).sum()))(jnp.ones(1, dtype))
    right = 6000 * (np.sin(2.0) - np.sin(1.0) ** 2)
    np.testing.assert_allclose(float(got[0]), right, rtol=float(jnp.finfo(dtype).eps))


@pytest.mark.peers
@pytest.mark.parametrize(
    ("factor", "method", "shape"),
    [(3, "nearest", (2, 5, 2)), ((2, 3), "nearest", (2, 3, 2, 2)), (2, "linear", (2, 5, 2)), (3, "linear", (1, 1, 1)),
     (5, "linear", (2, 4, 3)), ((2, 3), "linear", (2, 3, 4, 2))],
)  # fmt: skip
def test_upsampling_is_pytorchs(factor, method, shape, x64):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    mode = {"nearest": "nearest", "linear": "linear" if len(shape) == 3 else "bilinear"}[method]
    options = {"mode": mode} | ({"align_corners": False} if method == "linear" else {})
    scale = tuple(map(float, factor)) if isinstance(factor, tuple) else float(factor)
    x = RANDOM.standard_normal(shape)
    expected = pytorchs(torch, lambda x: torch.nn.functional.interpolate(x, scale_factor=scale, **options), x, waves)
    for got, right in zip(ours(layers.upsample(factor, method), x, waves), expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-13)


@pytest.mark.peers
@pytest.mark.parametrize("mode", ["constant", "reflect", "circular", "replicate"])
@pytest.mark.parametrize(("width", "shape"), [((3, 1), (2, 5, 2)), (((0, 2), (1, 3)), (2, 4, 5, 2)), (0, (1, 2, 1))])
def test_padding_is_pytorchs(mode, width, shape, x64):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    pairs = width if isinstance(width, tuple) and isinstance(width[0], tuple) else (width,)
    pairs = [pair if isinstance(pair, tuple) else (pair, pair) for pair in pairs]
    flat = [end for pair in reversed(pairs) for end in pair]  # PyTorch begins with the last axis
    x = RANDOM.standard_normal(shape)
    expected = pytorchs(torch, lambda x: torch.nn.functional.pad(x, flat, mode=mode), x, waves)
    for got, right in zip(ours(layers.pad(width, mode=mode), x, waves), expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-13)


@pytest.mark.peers
@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_a_padded_convolution_is_pytorchs_and_takes_its_weights(mode):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    theirs = torch.nn.Conv1d(3, 4, 5, stride=2, padding=3, padding_mode=mode)
    net = layers.chain(layers.pad(3, mode=mode), layers.conv(4, 5, strides=2))
    x = RANDOM.standard_normal((2, 9, 3)).astype(np.float32)
    params, state = interop.from_torch(theirs.state_dict(), net, x, rename=lambda name: name.removeprefix("1."))
    y, _ = jax.jit(lambda x: net.apply(params, state, x, train=False))(x)
    with torch.no_grad():
        expected = theirs(torch.tensor(np.moveaxis(x, -1, 1).copy())).numpy()
    np.testing.assert_allclose(y, np.moveaxis(expected, 1, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [layers.upsample(3000), layers.pad((2999, 0), mode="replicate")])
def test_gradients_in_16_bits_are_summed_in_float32(layer):
    x = jnp.ones((1, 1, 1), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda x: layer.apply((), (), x, train=True)[0].astype(jnp.float32).sum()))(x)
    assert gradient.dtype == jnp.bfloat16
    assert float(gradient[0, 0, 0]) == float(jnp.bfloat16(3000))


def test_a_stream_of_nearest_is_the_whole():
    x = RANDOM.standard_normal((2, 6, 3)).astype(np.float32)
    layer = layers.upsample(4)
    memory, pieces = layer.about.stream.start((), (), x[:, :1], None), []
    for first, last in ((0, 1), (1, 4), (4, 6)):
        y, memory = layer.about.stream.step((), (), memory, x[:, first:last])
        pieces.append(y)
    np.testing.assert_array_equal(jnp.concatenate(pieces, 1), layer.apply((), (), x, train=False)[0])


X = jnp.ones((2, 3, 4))


def apply(layer, x=X):
    return lambda: layer.apply((), (), x, train=False)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: layers.snake(float("inf")), ConfigError, "snake: alpha must be a finite number"),
        (lambda: snake(X, jnp.ones(3)), ShapeError, r"snake: alpha has shape \(3,\), an input of .* wants \(4,\)"),
        (lambda: layers.snake().init(0, jnp.ones(())), ShapeError, "got a scalar"),
        (lambda: snake(X, jnp.ones(4, jnp.bfloat16)), DTypeError, "dtypes differ"),
        (lambda: layers.upsample(0), ConfigError, "upsample: factor must be an integer >= 1, got 0"),
        (lambda: layers.upsample(()), ConfigError, "factor must name at least one dimension"),
        (lambda: layers.upsample(2, "cubic"), ConfigError, "method must be one of 'nearest', 'linear', got 'cubic'"),
        (apply(layers.upsample((2, 2))), ShapeError, "upsample: x must have 4 axes"),
        (apply(layers.upsample(2, "linear"), X[:, :0]), ShapeError, "nothing to interpolate"),
        (apply(layers.upsample(2), jnp.ones((1, 2, 1), int)), DTypeError, "must be floating point"),
        (lambda: layers.pad(-1), ConfigError, "pad: padding must be an integer >= 0, got -1"),
        (lambda: layers.pad("same"), ConfigError, "pad: width must be numbers, got 'same'; .* see conv"),
        (lambda: layers.pad(1, mode="mirror"), ConfigError, "mode must be one of 'constant', 'reflect'"),
        (lambda: layers.pad(1, mode="reflect", value=1.0), ConfigError, "a value goes with mode='constant'"),
        (
            apply(layers.pad(3, mode="reflect")),
            ShapeError,
            r"pad: mode='reflect' by \(3, 3\) takes a length of at least 4",
        ),
        (apply(layers.pad(4, mode="circular")), ShapeError, "takes a length of at least 4, got shape"),
        (apply(layers.pad(1, mode="replicate"), X[:, :0]), ShapeError, "takes a length of at least 1"),
        (apply(layers.pad(1, ndim=2)), ShapeError, "pad: x must have 4 axes"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
