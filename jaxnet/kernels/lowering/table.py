"""What a choice of form is made of: a problem, and ordered tables of which form solves which problems."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnet.kernels import forms, rewrites, symbolic
from jaxnet.kernels.geometry import Geometry
from jaxnet.kernels.slots import Slot, shape_of

Solver = Callable[[Slot, jax.Array, jax.Array, Geometry], jax.Array]
"""Takes a slot, its two operands and the geometry; returns the array that the form is solved for."""

MOST_TAPS = 32
"""Taps that become a shifted product each."""

MOST_DILATION = 16
"""Zeros between taps, that make strides and dilation at once into strides alone."""

MOST_MEMBERS = 16
"""Members, which `vmap` makes, that become a form each: beyond, compiling would take longer than it saves."""

MOST_GROUPS = 64
"""Groups that become a form each: 64 compile in 2 seconds a slot and then run 20 times as fast as the plain form."""


class Problem(NamedTuple):
    """The trilinear form to be solved for a slot, and what the choice of a form asks of it."""

    slot: Slot
    a: jax.Array
    b: jax.Array
    geometry: Geometry

    @property
    def members(self) -> int:
        """Independent forms, which `vmap` over both operands makes."""
        return self.a.shape[0]

    @property
    def groups(self) -> int:
        """Of a member."""
        return self.geometry.groups

    @property
    def channels(self) -> int:
        """Of a group."""
        return self.a.shape[-1] // self.groups if self.slot == "w" else self.b.shape[-2]

    @property
    def filters(self) -> int:
        """Of a group."""
        return self.b.shape[-1] // self.groups

    @property
    def widest(self) -> int:
        """The larger of a group's channels and filters."""
        return max(self.channels, self.filters)

    @property
    def taps(self) -> int:
        """Of a kernel."""
        return math.prod(self.geometry.size)

    @property
    def dilation(self) -> int:
        """The largest of an axis."""
        return max(self.geometry.dilation)

    @property
    def strided(self) -> bool:
        """Whether an axis has a stride."""
        return max(self.geometry.strides) > 1

    @property
    def pointwise(self) -> bool:
        """Whether it is a matrix product a group: one tap, stride 1, nothing to pad."""
        return self.taps == 1 and not self.strided and not any(map(any, self.geometry.padding))

    @property
    def narrow(self) -> bool:
        """Whether the arrays have 16 bits."""
        return jnp.finfo(self.a.dtype).bits < 32

    @property
    def empty(self) -> bool:
        """Whether an operand or the result has no elements."""
        return 0 in (*self.a.shape, *self.b.shape, *self.shape)

    @property
    def unmet(self) -> bool:
        """Whether every window lies outside of x."""
        return any(
            n + before <= 0 or n + after <= 0
            for n, (before, after) in zip(self.geometry.lengths, self.geometry.padding, strict=True)
        )

    @property
    def of_many_sizes(self) -> bool:
        """Whether an axis has a symbolic size."""
        return symbolic.is_of_many_sizes(self.a, self.b, self.geometry)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return shape_of(self.slot, self.a.shape, self.b.shape, self.geometry)

    def elementwise(self, most: int = MOST_TAPS) -> bool:
        """Whether a group's product is too small for a matrix product: depthwise and nearly so.

        After space-to-depth, the gradient of a strided depthwise convolution has S channels a group: beyond S = 4 it is
        none.
        """
        return self.groups > 1 and self.channels * self.filters <= 4 and self.taps <= most

    def by(self, solver: Solver) -> jax.Array:
        """Solved as it is."""
        return solver(*self)

    def through(self, rewrite: rewrites.Rewrite, inner: Solver) -> jax.Array:
        """Rewritten, and what that gives solved."""
        return rewrites.solve(rewrite, *self, inner)


class Rule(NamedTuple):
    """A row of a table: problems, and how they are solved."""

    when: Callable[[Problem], bool]
    form: Callable[[Problem], jax.Array]


def table(*rules: Rule) -> Solver:
    """Solves a problem by the first rule that it meets; the last one must take what is left."""

    def solve(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
        problem = Problem(slot, a, b, geometry)
        return next(rule.form(problem) for rule in rules if rule.when(problem))

    return solve


EMPTY = Rule(lambda p: p.empty, lambda p: jnp.zeros(p.shape, p.a.dtype))
UNMET = Rule(lambda p: p.unmet, lambda p: jnp.zeros(p.shape, p.a.dtype))
MANY_SIZES = Rule(lambda p: p.of_many_sizes, lambda p: p.by(symbolic.solve))


def otherwise(form: Callable[[Problem], jax.Array]) -> Rule:
    """The last row."""
    return Rule(lambda p: True, form)


def in_float32(solver: Solver) -> Solver:
    """Sums of products of 16-bit numbers are rounded once, at the end."""

    def solve(slot, a, b, geometry):
        dtype = a.dtype
        if jnp.finfo(dtype).bits < 32:
            a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return solver(slot, a, b, geometry).astype(dtype)

    return solve


shifted = table(
    # Zeros joined on to each tap's window are free for a few taps; one padded copy is cheaper for more (3 times at 7),
    # and for the kernel's gradient, which reads every window in one pass.
    Rule(
        lambda p: any(map(any, p.geometry.padding)) and (p.slot == "w" or p.taps > 5),
        lambda p: p.through(rewrites.padded(p.geometry), forms.shifted),
    ),
    otherwise(lambda p: p.by(forms.shifted)),
)
"""`forms.shifted`, of an input that is padded first where that pays."""


def one_channel(inner: Solver) -> Solver:
    """For y or x where there is one channel or one filter: shifted products, or one product and a sum.

    2 to 4 times as fast as products with one column or one row.
    """
    return table(
        Rule(lambda p: p.slot == "y" and p.channels == 1, lambda p: p.by(shifted)),
        Rule(
            lambda p: p.slot == "x" and p.channels == 1 and p.filters > 1,
            lambda p: p.through(rewrites.patches(p.geometry), forms.dot),
        ),
        otherwise(lambda p: p.through(rewrites.mirrored(p.geometry), inner)),
    )
