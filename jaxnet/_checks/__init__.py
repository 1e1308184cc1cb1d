"""Checks at the doors: constructors check Python numbers, `apply` checks shapes and dtypes at trace time.

None of them costs anything at run time. Each returns its argument in canonical form, or raises an error that says what
was wanted, what came, and one hint. Who refused is said by the door around it, `errors.named`.
"""

from jaxnet._checks.arrays import (
    array,
    describe,
    floating,
    floating_struct,
    leaves,
    nothing,
    rank,
    same_dtype,
    structs,
)
from jaxnet._checks.functions import accepts, function, signature, takes
from jaxnet._checks.host import host_array, is_numeric, unmasked, warn_of_narrowed
from jaxnet._checks.values import choice, flag, integer, key, number, path
from jaxnet._checks.warn import warn

__all__ = [
    "accepts",
    "array",
    "choice",
    "describe",
    "flag",
    "floating",
    "floating_struct",
    "function",
    "host_array",
    "integer",
    "is_numeric",
    "key",
    "leaves",
    "nothing",
    "number",
    "path",
    "rank",
    "same_dtype",
    "signature",
    "structs",
    "takes",
    "unmasked",
    "warn",
    "warn_of_narrowed",
]
