"""What a sweep needs of a device's memory, asked where it did not fit."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxnet.errors import ConfigError


@contextlib.contextmanager
def members_that_fit(members: int, device: Any, bytes_of: Callable[[int], int | None]) -> Iterator[None]:
    """Where the device has no memory left, says how much was needed, and for how many members there is enough.

    Args:
      members: how many there are.
      device: where they are.
      bytes_of: what a count of members needs, as `bytes_needed` gives it.

    Raises:
      ConfigError: the device has no memory left.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(f"{_what_fits(members, device, bytes_of)}") from error


def _what_fits(members: int, device: Any, bytes_of: Callable[[int], int | None]) -> str:
    text, hint = f"{members} members do not fit in the memory of {device}", "give fewer, or a smaller batch_size"
    try:
        one, two = bytes_of(1), bytes_of(2)
    except jax.errors.JaxRuntimeError:  # there is no room to ask
        one = two = None
    if one is None or two is None:
        return f"{text}; {hint}"
    each = max(two - one, 1)
    text += f"; they need about {_size(one + (members - 1) * each)}, {_size(each)} each"
    limit = _limit(device)
    if limit is not None:
        # What else lies there counts too, so that it may say that all would fit; they have not.
        most = min(max(0, 1 + (limit - one) // each), members - 1)
        text += f", and it has {_size(limit)}: at most about {most} fit"
    return f"{text}; {hint}"


def _limit(device: Any) -> int | None:
    """How many bytes JAX may have there, if the device says so."""
    return (device.memory_stats() or {}).get("bytes_limit")


def bytes_needed(program: Any, *arguments: Any) -> int | None:
    """What a jitted function needs at once for arguments of these shapes, if the compiler says so."""
    found = program.lower(*arguments).compile().memory_analysis()
    if found is None:
        return None
    sizes = (getattr(found, f"{kind}_size_in_bytes", 0) for kind in ("argument", "output", "temp"))
    return sum(sizes) - getattr(found, "alias_size_in_bytes", 0)


def _size(count: int) -> str:
    """Bytes as a person says them."""
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"
