"""Under the caller's name, as the packages that have no doors yet call it; deleted with the last of them."""

from typing import Any

from jaxnet.errors import named
from jaxnet.optimizers import _members


def optimizer(who: str, value: Any) -> Any:
    """`_members.member`, under the caller's name."""
    return named(who)(_members.member)(value)


def updated(who: str, *args: Any) -> Any:
    """`_members.updated`, under the caller's name."""
    return named(who)(_members.updated)(*args)
