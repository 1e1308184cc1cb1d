"""The same training with one choice undone: what each gave, in seconds or in accuracy."""

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.speedrun.recipes import BatchNorm, Conv, Parts, Patches, Recipe


class Ablation(NamedTuple):
    """One choice undone.

    Attributes:
      recipe: what is otherwise in the recipe.
      program: what is otherwise in `ours.contestant`.
      gpu: whether it is of a GPU's programs alone.
      parts: from the network to the other one.
    """

    recipe: dict[str, Any] = {}  # noqa: RUF012, never changed
    program: dict[str, Any] = {}  # noqa: RUF012
    gpu: bool = False
    parts: Callable[[Parts], Parts] = tuple


def without_norm(parts: Parts) -> Parts:
    """The network without its batch norms."""
    return tuple(part for part in parts if not isinstance(part, BatchNorm))


def by_strides(parts: Parts) -> Parts:
    """Patches and a product for each as one convolution that strides over them."""
    if not isinstance(parts[0], Patches) or not isinstance(parts[1], Conv):
        return parts
    size = parts[0].size
    return (Conv(parts[1].filters, 1, size, size), *parts[2:])


ABLATIONS: dict[str, Ablation] = {
    "all": Ablation(),
    "a step a dispatch": Ablation(program={"together": False}),
    "float32": Ablation(program={"dtype": "float32"}, gpu=True),
    "parameters in a tree": Ablation(program={"raveled": False}, gpu=True),
    "patches by strides": Ablation(parts=by_strides),
    "no batch norm": Ablation(parts=without_norm),
    "batches of 32": Ablation({"batch_size": 32}),
    "batches of 500": Ablation({"batch_size": 500}),
    "constant rate": Ablation({"rise": None}),
    "no crops": Ablation({"shift": 0}),
    "no mirroring": Ablation({"flip": False, "views": 1}),
    "one view in the test": Ablation({"views": 1}),
    "no label smoothing": Ablation({"smoothing": 0.0}),
    "no weight decay": Ablation({"decay": 0.0}),
}


def without(recipe: Recipe, name: str, on_gpu: bool) -> Recipe | None:
    """The recipe without that, or None where it has it not."""
    ablation = ABLATIONS[name]
    if ablation.gpu and not on_gpu:
        return None
    changed = recipe._replace(parts=ablation.parts(recipe.parts), **ablation.recipe)
    of_recipe = ablation.recipe or ablation.parts is not tuple
    return None if of_recipe and changed == recipe else changed
