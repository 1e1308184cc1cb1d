"""Arrays that lie on the devices of many hosts, stored by Orbax: each host writes and reads its own parts."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxnet.errors import CheckpointError


def write(directory: Path, arrays: dict[str, Any]) -> None:
    """Writes arrays under names of Orbax's liking; every process must call it, on a shared file system."""
    with _checkpointer("save") as (ocp, checkpointer):
        checkpointer.save(directory, args=ocp.args.StandardSave(arrays))


def read(directory: Path, likes: dict[str, Any]) -> dict[str, Any]:
    """Reads arrays, each into the sharding of its like (a `jax.ShapeDtypeStruct`, or a NumPy array for NumPy)."""
    with _checkpointer("load") as (ocp, checkpointer):
        try:
            return checkpointer.restore(directory, args=ocp.args.StandardRestore(likes))
        except Exception as error:  # a damaged file meets many libraries' exceptions here
            raise CheckpointError(f"load: Orbax cannot read {directory}: {str(error)[:300]}") from error


@contextlib.contextmanager
def _checkpointer(who: str):
    try:
        import orbax.checkpoint as ocp  # 1.7 s
    except ImportError as error:
        raise CheckpointError(
            f"{who}: arrays spread over several hosts are stored by Orbax, which is not installed: "
            f"pip install 'jaxnet[orbax]'"
        ) from error
    with contextlib.closing(ocp.Checkpointer(ocp.StandardCheckpointHandler())) as checkpointer:
        yield ocp, checkpointer


def share(number: bytes | None) -> bytes:
    """Eight bytes of the first process, in every process; zeros if it had None to share."""
    mine = np.frombuffer(number or bytes(8), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes()


def wait(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
