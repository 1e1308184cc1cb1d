"""What of an example or of a batch is x, and what the target, where it is no pair."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxnet import _words as words
from jaxnet.errors import ConfigError


def picks(pick: Any) -> Callable[[Any], Any]:
    """The function from what a loader yields to ``(x, target)``, of ``pick`` as a user gives it."""
    if pick is None:
        return lambda batch: batch
    if callable(pick):
        return pick
    names = isinstance(pick, (tuple, list)) and len(pick) in (2, 3) and all(isinstance(name, str) for name in pick)
    if not names:
        raise ConfigError(
            f"pick must be two names, ('image', 'label'), a third for weights, or a function from a batch to "
            f"(x, target), got {words.came(pick)}"
        )

    def by_name(batch):
        if not isinstance(batch, Mapping):
            raise ConfigError(f"pick={tuple(pick)} takes parts of a dict by name, got a {type(batch).__name__}")
        missing = [name for name in pick if name not in batch]
        if missing:
            raise ConfigError(
                f"pick names {', '.join(map(repr, missing))}, and the batch has {', '.join(map(repr, batch))}"
            )
        return tuple(batch[name] for name in pick)

    return by_name
