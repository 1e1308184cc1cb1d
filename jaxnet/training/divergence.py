"""When nothing but steps that are not finite come: the error that ends the run, and what it can say of the cause."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.errors import CheckpointError, JaxnetError, NonFiniteError
from jaxnet.layers.layer import Layer
from jaxnet.training import pairs
from jaxnet.training.feed import Resident
from jaxnet.training.keeping import Saver
from jaxnet.training.run import Run
from jaxnet.training.streamed import Streamed
from jaxnet.training.targets import check_targets

_USUAL_CAUSES = (
    "Lower the learning rate, clip the gradient (optimizers.clip_by_global_norm), or look for log(0), 0/0 and overflow "
    "in the loss"
)
_UPDATE_CAUSES = (
    "Look at the learning rate (does a schedule divide by zero?), at the optimizer's eps, and at parameters near the "
    "end of their dtype's range (a skipped step leaves the optimizer's count where it was, so a schedule that is not "
    "finite at one count stays there: the first of these steps was {})"
)


def must_learn(
    run: Run, feed: Resident | Streamed, saver: Saver, most: int, explain: Callable[[Any], str] | None
) -> None:
    """Ends a run in which ``most`` steps in a row were not finite.

    Raises:
      NonFiniteError: they were; with the state, the history and the batch.
    """
    if run.longest_row < most:
        return
    guard = run.train_state.guard
    last = int(guard.step)
    if last < 0 and not run.spoiled_by_update:
        raise NonFiniteError(
            f"{run.longest_row} steps in a row were not finite, and the step has no guard, so that they were taken; "
            f"give it one: make_step(guard=True)"
        )
    step_of_epoch = run.epoch.step_of_epoch - (int(run.train_state.step) - last)
    batch, which = feed.batch(len(run.history), step_of_epoch)
    leaf, params = int(guard.leaf), jax.tree_util.tree_leaves_with_path(getattr(run.train_state, "params", ()))
    if run.spoiled_by_update:
        where = "the optimizer's update (loss and gradient were finite)"
        cause = _UPDATE_CAUSES.format(last - run.in_row + 1)
    else:
        where = "the loss, or the sum of all gradients' squares"
        if 0 <= leaf < len(params):
            where = f"the gradient of {jax.tree_util.keystr(params[leaf][0])}"
        cause = explain(batch) if explain is not None and batch is not None else ""
    error = NonFiniteError(
        f"{run.longest_row} steps in a row were not finite; the last was step {last} "
        f"(epoch {len(run.history) + 1}, batch {step_of_epoch}: {which}); the first value that was not "
        f"finite is {where}. {cause or _USUAL_CAUSES}. "
        f"None of them has changed the parameters, which are in error.train_state"
        + (f", and saved in {saver.checkpoints.directory}" if saver.checkpoints is not None else "")
    )
    try:
        saver.save(run)
        saver.written(run)
    except CheckpointError as refused:
        error.add_note(f"It could not be saved: {refused}")
    error.batch = batch  # type: ignore[attr-defined]
    raise run.left_on(error)


def what_is_wrong(net: Layer, loss: Any, batch: Any) -> str:
    """What is wrong with a batch ``(x, target)`` that gave NaN, if that is it, or nothing."""
    for path, array in jax.tree_util.tree_leaves_with_path(batch):
        host = np.asarray(array)
        narrow = host.dtype == jnp.bfloat16  # which NumPy's isfinite does not know
        if host.dtype.kind in "fcV" and not np.isfinite(host.astype(np.float32) if narrow else host).all():
            return f"The batch's {pairs.leaf_name(path)} holds NaN or Inf: drop or repair those samples"
    try:
        check_targets(net, loss, batch)
    except JaxnetError as error:
        return f"The loss refuses the batch's targets: {error}"
    except Exception:  # a network that takes no such batch in evaluation: what it is asked for is an explanation
        return ""
    return ""
