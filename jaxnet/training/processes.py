"""What the processes of one run must have in common, so that none waits for what another never does."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxnet.errors import ConfigError


def must_take_part(mesh: Mesh | None) -> None:
    """Refuses to train with a part of the processes: those left out would wait for ever, or train for themselves."""
    taking_part = set() if mesh is None else {device.process_index for device in mesh.devices.flat}
    if jax.process_count() > 1 and len(taking_part) < jax.process_count():
        came = "there is no mesh" if mesh is None else f"the mesh has devices of {len(taking_part)} of them"
        raise ConfigError(
            f"{jax.process_count()} processes must train together, and {came}; give "
            f"mesh=jax.make_mesh((jax.device_count(),), ('data',))"
        )


def agree(what: str, value: int, hint: str) -> None:
    """Refuses, on all processes at once, a ``value`` below 2**32 that is not that of process 0."""
    if jax.process_count() == 1:
        return
    values = multihost_utils.process_allgather(np.uint32(value))
    differ = np.flatnonzero(values != values[0])
    if differ.size:
        raise ConfigError(f"{what} of process {differ[0]} is not that of process 0; {hint}")


def any_process(*flags: bool) -> tuple[bool, ...]:
    """Whether each is so on any process, so that all do the same."""
    if jax.process_count() == 1:
        return flags
    return tuple(multihost_utils.process_allgather(np.array(flags)).any(0).tolist())
