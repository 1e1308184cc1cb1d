"""Learning rates that change: plain functions from the step (0, 1, ...) to a value, with optax's signatures."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet._made import made
from jaxnet.errors import ConfigError
from jaxnet.optimizers._hyperparameters import scalar
from jaxnet.optimizers.base import Schedule

P = ParamSpec("P")
number = functools.partial(scalar, schedule=False)


def _door(constructor: Callable[P, Schedule]) -> Callable[P, Schedule]:
    """A constructor, `made`, whose schedule works also where implicit promotion is off."""

    @functools.wraps(constructor)
    def call(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        schedule = constructor(*args, **kwargs)

        @functools.wraps(schedule)
        def at(count):
            with jax.numpy_dtype_promotion("standard"):  # its numbers may be arrays of any dtypes
                return schedule(count)

        return at

    return made(call)


@_door
def constant_schedule(value: Any) -> Schedule:
    r"""The same value at every step.

    .. math:: \eta_t = \eta

    Args:
      value: :math:`\eta \ge 0`, a number or a scalar array.

    Returns:
      A function from the step to ``value`` itself.

    Raises:
      ConfigError: ``value`` is no finite number from 0 on.

    Example:
      >>> constant_schedule(0.1)(1000)
      0.1

    Source: `optax.constant_schedule`.
    """
    value = number("value", value)
    return lambda count: value


@_door
def exponential_decay(
    init_value: Any,
    transition_steps: int,
    decay_rate: float,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: Any = None,
) -> Schedule:
    r"""A value that is multiplied by a factor every so many steps.

    .. math:: \eta_t = \eta_0\, r^{(t - B) / T} \quad (t > B), \qquad \eta_t = \eta_0 \quad (t \le B)

    Args:
      init_value: :math:`\eta_0`, a number or a scalar array.
      transition_steps: T >= 1, the steps that one factor takes.
      decay_rate: r > 0, the factor.
      transition_begin: B >= 0, the step up to which the value stays.
      staircase: whether the exponent is rounded down, so that the value changes only every T steps.
      end_value: where the decay stops: a lower bound if r < 1, else an upper bound. None for no bound.

    Returns:
      A function from the step (0, 1, ..., an integer or a scalar array) to the value, a scalar array.

    Raises:
      ConfigError: an argument makes no sense.

    Example:
      >>> schedule = exponential_decay(1.0, transition_steps=10, decay_rate=0.5)
      >>> [float(schedule(step)) for step in (0, 10, 20)]
      [1.0, 0.5, 0.25]

    Source: `optax.exponential_decay`.
    """
    init_value = number("init_value", init_value)
    steps = checks.integer("transition_steps", transition_steps, minimum=1)
    begin = checks.integer("transition_begin", transition_begin, minimum=0)
    decay_rate = number("decay_rate", decay_rate, open_low=True)
    checks.flag("staircase", staircase)
    end_value = None if end_value is None else number("end_value", end_value)

    def schedule(count):
        past = _step(count) - begin
        exponent = past / steps
        if staircase:
            exponent = jnp.floor(exponent)
        value = jnp.where(past <= 0, init_value, init_value * jnp.power(decay_rate, exponent))
        if end_value is None:
            return value
        return jnp.where(jnp.asarray(decay_rate) < 1, jnp.maximum(value, end_value), jnp.minimum(value, end_value))

    return schedule


@_door
def warmup_cosine_decay_schedule(
    init_value: Any,
    peak_value: Any,
    warmup_steps: int,
    decay_steps: int,
    end_value: Any = 0.0,
    exponent: float = 1.0,
) -> Schedule:
    r"""A straight rise to the peak, then half a cosine down to the end.

    .. math::
      \eta_t = \eta_0 + (\eta_p - \eta_0) \frac{t}{W} \quad (t < W), \qquad
      \eta_t = \eta_e + (\eta_p - \eta_e) \left( \frac{1 + \cos(\pi \tau)}{2} \right)^p,
      \quad \tau = \min\left(\frac{t - W}{D - W}, 1\right)

    Args:
      init_value: :math:`\eta_0`, the first value.
      peak_value: :math:`\eta_p`, reached at step W.
      warmup_steps: W >= 0.
      decay_steps: D > W, the length of the whole schedule, warm-up included.
      end_value: :math:`\eta_e`, kept from step D on.
      exponent: p > 0.

    Returns:
      A function from the step (0, 1, ..., an integer or a scalar array) to the value, a scalar array.

    Raises:
      ConfigError: an argument makes no sense.

    Example:
      >>> schedule = warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=10, decay_steps=30)
      >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 20, 30, 99)]
      [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]

    Source: Loshchilov & Hutter, SGDR, arXiv 1608.03983, and `optax.warmup_cosine_decay_schedule`.
    """
    init_value = number("init_value", init_value)
    peak_value = number("peak_value", peak_value)
    end_value = number("end_value", end_value)
    exponent = number("exponent", exponent, open_low=True)
    warmup = checks.integer("warmup_steps", warmup_steps, minimum=0)
    total = checks.integer("decay_steps", decay_steps, minimum=0)
    if total <= warmup:
        raise ConfigError(
            f"decay_steps counts the whole schedule, warm-up included, so it must be more than "
            f"warmup_steps = {warmup}, got {total}; for {total} steps of decay pass decay_steps={warmup + total}"
        )
    if isinstance(peak_value, float) and peak_value == 0.0 and not (isinstance(end_value, float) and end_value == 0.0):
        raise ConfigError(f"peak_value is 0 and end_value {end_value}; the peak must be positive")

    def schedule(count):
        alpha = 0.0 if isinstance(peak_value, float) and peak_value == 0.0 else end_value / peak_value
        step = _step(count)
        if warmup:
            remaining = 1 - jnp.clip(step, 0, warmup) / warmup
            rise = (init_value - peak_value) * remaining + peak_value
        else:
            rise = init_value
        fraction = jnp.minimum(step - warmup, float(total - warmup))
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * fraction / float(total - warmup)))
        # The clip takes nothing away after the warm-up; before it, it keeps the unused branch from a NaN.
        fall = peak_value * ((1 - alpha) * jnp.clip(cosine, 0, 1) ** exponent + alpha)
        return jnp.where(step < warmup, rise, fall)

    return schedule


@_door
def piecewise_constant_schedule(init_value: Any, boundaries_and_scales: dict[int, float] | None = None) -> Schedule:
    r"""A value that is multiplied by a factor at each boundary.

    .. math:: \eta_t = \eta_0 \prod_{k:\, B_k \le t} f_k

    Args:
      init_value: :math:`\eta_0`, the value before the first boundary, a number or a scalar array.
      boundaries_and_scales: from steps :math:`B_k` to factors :math:`f_k \ge 0`; from that step on, the value is
        multiplied by it. None for no boundary.

    Returns:
      A function from the step (0, 1, ..., an integer or a scalar array) to the value, a scalar array.

    Raises:
      ConfigError: an argument makes no sense.

    Example:
      >>> schedule = piecewise_constant_schedule(1.0, {10: 0.5, 20: 0.5})
      >>> [float(schedule(step)) for step in (9, 10, 20)]
      [1.0, 0.5, 0.25]

    Source: `optax.piecewise_constant_schedule`.
    """
    init_value = number("init_value", init_value)
    if boundaries_and_scales is not None and not isinstance(boundaries_and_scales, dict):
        raise ConfigError(
            f"boundaries_and_scales must be a dict such as {{1000: 0.1}}, got {words.came(boundaries_and_scales)}"
        )
    pieces = sorted(
        (
            checks.integer("a boundary", step, minimum=0),
            number(f"the scale at step {step}", scale),
        )
        for step, scale in (boundaries_and_scales or {}).items()
    )

    def schedule(count):
        value = init_value
        for step, scale in pieces:
            value = jnp.where(jnp.asarray(count) < step, value, scale * value)
        return value

    return schedule


def _step(count: Any) -> Any:
    """The step as a float: exact up to 2^24, and explicit where promotion is strict."""
    return jnp.asarray(count).astype(jnp.result_type(float))
