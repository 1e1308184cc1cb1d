"""What the members of a sweep differ in: their seeds, and the hyperparameters that an optimizer is made from."""

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet.errors import ConfigError, located, named
from jaxnet.optimizers import _members


@named("grid")
def grid(**values: Sequence[Any]) -> dict[str, np.ndarray]:
    """Every combination of some values, as equally long arrays for `sweep`.

    Args:
      **values: by name, the values to combine; the last name's change first.

    Returns:
      By name, an array (combinations,).

    Raises:
      ConfigError: a name whose values are no list, or an empty one.

    Example:
      >>> from jaxnet import training
      >>> training.grid(seed=[0, 1], rate=[0.1, 0.2])
      {'seed': array([0, 0, 1, 1]), 'rate': array([0.1, 0.2, 0.1, 0.2])}
    """
    for name, several in values.items():
        if isinstance(several, (str, bytes)) or not np.iterable(several):
            raise ConfigError(
                f"{name} must be a list of values, got {words.came(several)}; a single one is [{several!r}]"
            )
    lists = {name: list(several) for name, several in values.items()}
    if not lists or not all(lists.values()):
        raise ConfigError(f"every name needs at least one value, got {lists}")
    columns = zip(*itertools.product(*lists.values()), strict=True)
    return {name: np.array(column) for name, column in zip(lists, columns, strict=True)}


def checked_settings(given: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, jax.Array]]:
    """The settings as arrays; of them, the seeds, and the hyperparameters on the device."""
    if not isinstance(given, Mapping) or "seed" not in given:
        hint = "add seed=[0]" if isinstance(given, Mapping) else "try training.grid"
        raise ConfigError(f"settings must be a dict with a 'seed' a member, got {words.came(given)}; {hint}")
    settings = {name: np.asarray(values) for name, values in given.items()}
    lengths = {name: values.shape for name, values in settings.items()}
    if len(set(lengths.values())) > 1 or settings["seed"].ndim != 1 or not len(settings["seed"]):
        raise ConfigError(f"settings must have one value a member each, got the shapes {lengths}")
    seeds = np.array([checks.integer("seed", seed, minimum=0) for seed in settings["seed"]])
    hyper = {}
    for name, values in settings.items():
        if name != "seed":
            numbers = [checks.number(name, value) for value in values.tolist()]
            kind = np.float64 if settings[name].dtype.kind == "f" else np.int32
            hyper[name] = jnp.asarray(numbers, jax.dtypes.canonicalize_dtype(kind))
    if any(seed >= 2**32 for seed in seeds.tolist()):
        raise ConfigError(f"seeds must be below 2**32, got {max(seeds.tolist())}")
    return settings, seeds, hyper


def check_rule(rule: Callable[..., Any], settings: Mapping[str, np.ndarray], hyper: Mapping[str, Any]) -> None:
    """Makes every member's optimizer: inside the compiled program its settings are traced, and nothing can look."""
    try:
        inspect.signature(rule).bind(**hyper)
    except TypeError:
        takes = ", ".join(inspect.signature(rule).parameters) or "nothing"
        raise ConfigError(
            f"the optimizer takes {takes}, not {', '.join(hyper) or 'nothing'}; name the settings as it does"
        ) from None
    for m in range(len(settings["seed"])):
        one = {name: settings[name][m].item() for name in hyper}
        with located(f"member {m} ({', '.join(f'{name}={value}' for name, value in one.items())})"):
            _members.member(rule(**one))
