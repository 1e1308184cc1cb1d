"""Arrays that lie on the devices of many hosts, stored by Orbax: each host writes and reads its own parts.

Orbax 0.12.8 loads arrays with flipped bits without a word, so the manifest keeps a checksum of every file. Imports
are late: Orbax takes 1.7 s.
"""

import contextlib
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxnet import _optional as optional
from jaxnet.errors import CheckpointError
from jaxnet.training import _manifest


def write(directory: Path, arrays: dict[str, Any]) -> None:
    """Writes arrays under names of Orbax's liking; every process must call it, on a shared file system."""
    with _checkpointer("save") as (ocp, checkpointer):
        checkpointer.save(directory, args=ocp.args.StandardSave(arrays))


def read(directory: Path, likes: dict[str, Any], *, part: bool) -> dict[str, Any]:
    """Reads arrays, each into the sharding of its like (a `jax.ShapeDtypeStruct`, or a NumPy array for NumPy).

    ``part`` says whether there are more than are wanted.
    """
    with _checkpointer("load") as (ocp, checkpointer):
        try:
            if not part:
                return checkpointer.restore(directory, args=ocp.args.StandardRestore(likes))
            arguments = ocp.checkpoint_utils.construct_restore_args(likes)
            wanted = ocp.args.PyTreeRestore(likes, restore_args=arguments, partial_restore=True)
            with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as some:
                return some.restore(directory, args=wanted)
        except Exception as error:  # a damaged file meets many libraries' exceptions here
            raise CheckpointError(f"load: Orbax cannot read {directory}: {str(error)[:300]}") from error


@contextlib.contextmanager
def _checkpointer(who: str):
    ocp = optional.load(f"{who}: an array spread over several hosts", "orbax.checkpoint")
    with contextlib.closing(ocp.Checkpointer(ocp.StandardCheckpointHandler())) as checkpointer:
        yield ocp, checkpointer


def checksums(directory: Path, part: slice = slice(None)) -> tuple[list[str], dict[str, str]]:
    """The names of all files below a directory, and the CRC-32 of a part of them."""
    names = sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if not file.is_dir())
    found = {}
    for name in names[part]:
        crc32 = 0
        with _manifest.open_regular(directory / name) as file:
            while block := file.read(2**20):
                crc32 = zlib.crc32(block, crc32)
        found[name] = f"{crc32:08x}"
    return names, found


def check(directory: Path, wanted: Any) -> None:
    """Compares all files with the checksums that were saved: each process a part, and all raise if one does."""
    from jax.experimental import multihost_utils

    names, found = checksums(directory, slice(jax.process_index(), None, jax.process_count()))
    sound = isinstance(wanted, dict) and sorted(wanted) == names and found.items() <= wanted.items()
    if not np.all(multihost_utils.process_allgather(np.array(sound))):
        raise CheckpointError(f"{directory} is damaged: its files are not those that were saved")


def share(name: str) -> str:
    """The first process's file name, in every process."""
    from jax.experimental import multihost_utils

    mine = np.frombuffer(name.encode().ljust(256, b"\0"), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes().rstrip(b"\0").decode()


def all_well(well: bool) -> bool:
    """Waits until every process is here; whether it is ``well`` with all."""
    from jax.experimental import multihost_utils

    return well if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(well)).all())
