"""The chance that a rectifier network is dead before it has learned anything (4.2.1)."""

from collections.abc import Sequence

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, named


@named("born_dead_probability")
def born_dead_probability(widths: Sequence[int]) -> float:
    """The chance that some hidden layer of a fresh relu network is 0 for a given input, so that nothing passes.

    With weights drawn symmetrically about 0, independently, and biases 0 (or symmetric too), each unit of a layer that
    sees anything but zeros is positive with chance 1/2. All N_l of them are off with chance 2^-N_l, so ::

        P(dead) = 1 - prod over l of (1 - 2^-N_l)

    A network that is 0 for all inputs is 0 for each one, so this bounds the chance of being born dead over a whole
    domain from above; with biases 0 and inputs on one ray it is that chance. It tends to 1 as depth grows, and to 0 as
    width grows.

    Args:
      widths: N_1, N_2, ..., units of each hidden layer.

    Returns:
      The chance, from 0 to 1.

    Raises:
      ConfigError: no layer, or a width that is no positive integer.

    Example:
      >>> from jaxnet import diagnostics
      >>> round(diagnostics.born_dead_probability([2] * 10), 3)  # ten layers of two units
      0.944
      >>> diagnostics.born_dead_probability([64] * 10) < 1e-18
      True

    Source: Lu et al. 2019, arXiv 1903.06733, [74], the upper bound for symmetric initialization.
    """
    if not isinstance(widths, Sequence) or not widths:
        raise ConfigError(f"widths must be a sequence with one width a hidden layer, got {widths!r}; try [64, 64]")
    dead = 0.0
    for width in widths:
        # Adding up what dies keeps the digits that 1 - (1 - small) would lose.
        dead += (1 - dead) * 0.5 ** checks.integer("widths", width, minimum=1)
    return dead
