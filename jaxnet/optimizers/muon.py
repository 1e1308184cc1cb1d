"""Muon: momentum whose matrices are made orthogonal."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet.errors import ConfigError, ShapeError
from jaxnet.optimizers import _rates as rates
from jaxnet.optimizers._hyperparameters import decays, float_dtype, scalar, scalars
from jaxnet.optimizers._rule import Kept, door, rule
from jaxnet.optimizers.adam import unbiased_mean
from jaxnet.optimizers.adamw import adamw
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule
from jaxnet.optimizers.decay import checked_decay, decayed
from jaxnet.optimizers.partition import partition
from jaxnet.optimizers.vectors import Vector, each
from jaxnet.paths import Which, select, text

STEEP = (3.4445, -4.7750, 2.0315)
"""A quintic that is steep at 0, so that five steps lift small singular values; they end between about 0.7 and 1.2."""


class MuonState(NamedTuple):
    """The state of the matrices in `muon`.

    Attributes:
      count: steps taken, an int32 scalar.
      mu: the momentum, not corrected for its start at 0, shaped like the parameters.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Any


def _two_axes(path: str, leaf: Any) -> bool:
    return leaf.ndim == 2


@door
def muon(
    learning_rate: ScalarOrSchedule,
    beta: ScalarOrSchedule = 0.95,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    nesterov: bool = True,
    ns_steps: int = 5,
    ns_coeffs: Sequence[float] = STEEP,
    eps: ScalarOrSchedule = 1e-8,
    consistent_rms: float | None = None,
    mu_dtype: Any = None,
    matrices: Which = _two_axes,
    stacked: Which = False,
    others: Any = None,
) -> Optimizer:
    r"""Muon: every matrix moves by an orthogonal one, as large in all directions; the rest is AdamW's.

    .. math::
      m_i = \beta m_{i-1} + (1 - \beta) g_i, \quad
      \theta_i = \theta_{i-1} - \eta \left( \sqrt{\max(1, N_{out} / N_{in})}\; O(\hat m_i) + \lambda\, \theta_{i-1}
      \right)

    where :math:`\hat m` is the corrected momentum, one step further along the gradient with ``nesterov``, and O(M) is
    near :math:`U V^T` of its singular value decomposition: five steps of Newton and Schulz,

    .. math::
      X_0 = M / (\|M\|_F + \varepsilon), \quad A = X X^T, \quad X \leftarrow a X + (b A + c A^2) X

    Args:
      learning_rate: :math:`\eta \ge 0`, a float, a scalar array, or a schedule; about 0.02, or Adam's with
        ``consistent_rms=0.2``.
      beta: :math:`\beta` in [0, 1), the decay of the momentum.
      weight_decay: :math:`\lambda \ge 0`, of the matrices.
      mask: which matrices decay, as in `adamw`.
      nesterov: whether the momentum looks ahead by one step.
      ns_steps: how many steps of Newton and Schulz.
      ns_coeffs: (a, b, c); (1.875, -1.25, 0.375) converges to singular values of exactly 1, in more steps.
      eps: :math:`\varepsilon \ge 0`, added to the norm.
      consistent_rms: r, for a factor of :math:`r \sqrt{\max(N_{in}, N_{out})}` in place of the root above: an update
        has then the same root mean square in every shape, and 0.2 is about AdamW's.
      mu_dtype: the dtype that the momentum is kept in; None for the parameters' own, at least float32.
      matrices: which leaves are matrices, as in `paths.select`; those of two axes unless given. The last axis of a leaf
        is N_out, all others together are N_in: so a convolution's kernel is one matrix. Embeddings and the last layer
        train better with AdamW: leave them out.
      stacked: which of them hold several matrices in their last two axes, as those of a `layers.repeat` do.
      others: the optimizer of all other leaves; ``adamw(learning_rate, weight_decay=0, nesterov=nesterov)`` unless
        given.

    Returns:
      An `Optimizer` whose state is that of the `partition` into matrices and others.

    Raises:
      ConfigError: a concrete argument makes no sense, ``others`` is no optimizer, a mask or a pattern chooses no leaf,
        or ``update`` is called without the parameters.
      ShapeError: a leaf among the matrices has less than two axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet.optimizers import muon
      >>> params = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> optimizer = muon(0.1, ns_steps=12, ns_coeffs=(1.875, -1.25, 0.375))
      >>> grads = {"kernel": jnp.array([[3.0, 0.0], [0.0, 0.01]]), "bias": jnp.array([1.0, 0.0])}
      >>> optimizer.update(grads, optimizer.init(params), params)[0]["kernel"].round(3)
      Array([[-0.1, -0. ],
             [-0. , -0.1]], dtype=float32)

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; with ``consistent_rms``, Liu et al. 2025, arXiv
    2502.16982.
    """
    checks.flag("nesterov", nesterov)
    steps = checks.integer("ns_steps", ns_steps, minimum=1)
    a, b, c = _coefficients(ns_coeffs)
    rms = None if consistent_rms is None else scalar("consistent_rms", consistent_rms, open_low=True, schedule=False)
    numbers = scalars(learning_rate=learning_rate, eps=eps) | decays(beta=beta) | checked_decay(weight_decay, mask)

    def step(g, s, params, learning_rate, beta, eps, weight_decay):
        m = (1 - beta) * g + beta * s.mu
        layouts = _layouts(params, select(params, stacked))
        u = unbiased_mean(m, g, beta, s.count, nesterov)
        o = Vector(orthogonal(u.leaves, layouts, steps, (a, b, c), eps))
        scaled = each(lambda x, layout: x * layout.factor(rms), o, Vector(layouts))
        return -learning_rate * decayed(scaled, params, weight_decay, mask), s._replace(mu=m)

    kept = {"mu": Kept(dtype=float_dtype("mu_dtype", mu_dtype))}
    of_matrices = rule(MuonState, step, numbers, kept, needs_params="Muon")
    rest = adamw(learning_rate, weight_decay=0.0, nesterov=nesterov) if others is None else others
    both = partition([(matrices, of_matrices), ("*", rest)])
    return rates.saying(both, lambda before, after: rates.known(of_matrices, before[0], after[0]))


class Layout(NamedTuple):
    """A leaf as matrices: how many, N_in by N_out."""

    copies: int
    rows: int
    columns: int

    def factor(self, rms: Any) -> Any:
        """What the orthogonal matrices are multiplied by."""
        if rms is None:
            return math.sqrt(max(1.0, self.columns / max(self.rows, 1)))
        return rms * math.sqrt(max(self.rows, self.columns))


def orthogonal(
    leaves: list[jax.Array], layouts: list[Layout], steps: int, coefficients: tuple[float, float, float], eps: Any
) -> list[jax.Array]:
    """O of every matrix in the leaves."""
    iterated = functools.partial(newton_schulz, eps=eps, steps=steps, coefficients=coefficients)

    def one_by_one(stacks):
        return [jax.lax.map(iterated, x) if len(x) > 1 else iterated(x[0])[None] for x in stacks]

    def together(stacks):
        groups: dict[Any, list[int]] = {}
        for i, x in enumerate(stacks):
            groups.setdefault((x.shape[1:], x.dtype), []).append(i)
        found: dict[int, jax.Array] = {}
        for members in groups.values():
            those = [stacks[i] for i in members]
            results = jnp.split(iterated(jnp.concatenate(those)), _ends(map(len, those)))
            found.update(zip(members, results, strict=True))
        return [found[i] for i in range(len(stacks))]

    stacks = [leaf.reshape(layout) for leaf, layout in zip(leaves, layouts, strict=True)]
    # XLA's CPU products of a stack of matrices are half as fast as those of one after the other, which need no copies.
    results = jax.lax.platform_dependent(stacks, cpu=one_by_one, default=together)
    return [x.reshape(leaf.shape) for x, leaf in zip(results, leaves, strict=True)]


@functools.partial(jax.jit, static_argnames=("steps", "coefficients"))  # traced once for all matrices of one shape
def newton_schulz(x: jax.Array, *, eps: Any, steps: int, coefficients: tuple[float, float, float]) -> jax.Array:
    """O of matrices (..., rows, columns): X <- p(X X^T) X, or X p(X^T X) if that is the smaller square."""
    shorter, longer = sorted(x.shape[-2:])
    tall = x.shape[-1] == shorter
    # Where one side is much the longer, the products of the squares alone are cheaper than those with X. Errors in
    # their small eigenvalues grow by a^2 a step, so X is formed after every third.
    at_once = 3 if 2 * longer > 3 * shorter else 1
    norm = jnp.sqrt(jnp.sum(jnp.real(x * x.conj()), (-2, -1), keepdims=True))
    x = x / (norm + eps).astype(x.dtype)
    for done in range(0, steps, at_once):
        square = jnp.matmul(_conjugate(x), x) if tall else jnp.matmul(x, _conjugate(x))
        q = _polynomial(square, min(at_once, steps - done), *coefficients)
        x = jnp.matmul(x, q) if tall else jnp.matmul(q, x)
    return x


def _polynomial(square: jax.Array, steps: int, a: float, b: float, c: float) -> jax.Array:
    """What X is multiplied by in some steps: the product of their P = a I + b A + c A^2, where A <- P^2 A."""
    identity = jnp.eye(square.shape[-1], dtype=square.dtype)
    q = None
    for left in reversed(range(steps)):
        p = a * jnp.broadcast_to(identity, square.shape) + b * square + c * jnp.matmul(square, square)
        q = p if q is None else jnp.matmul(p, q)
        if left:
            square = jnp.matmul(p, jnp.matmul(p, square))
    assert q is not None
    return q


def _conjugate(x: jax.Array) -> jax.Array:
    x = jnp.swapaxes(x, -1, -2)
    return x.conj() if jnp.iscomplexobj(x) else x


def _ends(sizes: Any) -> list[int]:
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    return ends[1:-1]


def _layouts(params: Any, stacked: Any) -> list[Layout]:
    layouts = []
    for (path, leaf), copied in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(stacked), strict=True):
        shape = jnp.shape(leaf)
        if len(shape) < 2:
            raise ShapeError(
                f"{text(path)} has the shape {shape}, and is no matrix; choose others by matrices=, such as "
                f"matrices=lambda path, leaf: leaf.ndim > 1"
            )
        rows, copies = (shape[-2], math.prod(shape[:-2])) if copied else (math.prod(shape[:-1]), 1)
        layouts.append(Layout(copies, rows, shape[-1]))
    return layouts


def _coefficients(values: Any) -> tuple[float, float, float]:
    if not isinstance(values, Sequence) or len(values) != 3 or not all(isinstance(v, (int, float)) for v in values):
        raise ConfigError(f"ns_coeffs must be three numbers (a, b, c), got {words.came(values)}")
    a, b, c = map(float, values)
    return a, b, c
