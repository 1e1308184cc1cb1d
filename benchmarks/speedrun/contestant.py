"""What a library's training is to the harness."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.speedrun.batches import Plan


class Contestant(NamedTuple):
    """A library's training of one recipe, on its device.

    Attributes:
      begin: starts anew with ``(params, state)`` of our network, and an optimizer that has seen nothing.
      advance: takes the steps of a plan; need not wait for them.
      wait: until all steps are taken.
      accuracy: the share of the test images that are classified rightly now.
      losses: of the last plan's steps.
      weights: ``(params, state)`` as `begin` takes them.
    """

    begin: Callable[[Any, Any], None]
    advance: Callable[[Plan], None]
    wait: Callable[[], Any]
    accuracy: Callable[[], float]
    losses: Callable[[], np.ndarray]
    weights: Callable[[], Any]
