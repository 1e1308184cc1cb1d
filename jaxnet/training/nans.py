"""Programs where `jax_debug_nans` or `jax_debug_infs` is on: errors name the operation, not the loop around it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax


def compiled(f: Callable[..., Any], donate_argnums: int | Sequence[int] = (), **options: Any) -> Callable[..., Any]:
    """``jax.jit(f, ...)``; if JAX looks for NaN or Inf and finds one, up to there it is run operation by operation.

    JAX itself runs ``f`` once more without compiling it, and of a loop says no more than that the loop gave a NaN. For
    that the arguments must still be there, so then nothing is donated.
    """
    looks = jax.config.jax_debug_nans or jax.config.jax_debug_infs  # type: ignore[attr-defined]
    program = jax.jit(f, donate_argnums=() if looks else donate_argnums, **options)

    def call(*arguments):
        try:
            return program(*arguments)
        except FloatingPointError:
            with jax.disable_jit():
                program(*arguments)
            raise

    return call
