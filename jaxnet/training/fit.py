"""Training in one call (4.6)."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks_named as checks
from jaxnet.errors import ConfigError, JaxnetError
from jaxnet.layers.layer import Params, State, as_layer
from jaxnet.optimizers import _checks as optimizer_checks
from jaxnet.optimizers.master_copy import keeps_master
from jaxnet.training import early_stopping as stopping
from jaxnet.training import loop, sharding
from jaxnet.training import state as states
from jaxnet.training.checkpoints import Checkpoints
from jaxnet.training.early_stopping import EarlyStopping
from jaxnet.training.evaluate import check_labels, make_evaluate
from jaxnet.training.history import History, Record
from jaxnet.training.identity import of_program
from jaxnet.training.pairs import arrays
from jaxnet.training.sources import Source
from jaxnet.training.state import TrainState
from jaxnet.training.step import COLUMNS, make_step


class Fit(NamedTuple):
    """What `fit` returns.

    Attributes:
      params: of the best epoch if ``early_stopping`` was given, else of the last.
      state: the network's state, of the same epoch.
      history: the records of all epochs.
      train_state: after the last step, to train on with.
    """

    params: Params
    state: State
    history: History
    train_state: TrainState


def fit(
    net: Any,
    loss: Callable[[Any, Any], jax.Array],
    optimizer: Any,
    data: Any,
    *,
    epochs: int,
    batch_size: int | None = None,
    validation: Any = None,
    validation_steps: int | None = None,
    key: Any = 0,
    seed: int = 0,
    metrics: Mapping[str, Callable[[Any, Any], jax.Array]] | None = None,
    regularizer: Callable[[Any], jax.Array] | None = None,
    accumulate: int = 1,
    loss_scale: float | None = None,
    start: tuple[Params, State] | None = None,
    early_stopping: EarlyStopping | int | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoints | None = None,
    checkpoint_seconds: float = 10.0,
    callbacks: Sequence[Callable[[Record, TrainState], Any]] = (),
    log: str | os.PathLike[str] | None = None,
    shuffle: bool = True,
    drop_last: bool = True,
    steps_per_epoch: int | None = None,
    mesh: Any = None,
    shard_parameters: bool = False,
    max_skipped: int = 20,
    progress: bool | Callable[[str], Any] = True,
    resume: str = "same",
) -> Fit:
    """Trains a network: mini-batches, one compiled program, a line an epoch, and nothing lost when it is interrupted.

    Arrays ``(x, target)`` are put on the device once, and batches are sampled inside the program, many steps a
    dispatch, without compiling again for a last partial batch. With ``checkpoint``, the run is saved every few seconds,
    at Ctrl-C and at SIGTERM, and the same call takes it up where it stopped: with the same bits, on the same machine,
    as if it had never been interrupted.

    Args:
      net: a `Layer` from x to a prediction.
      loss: ``(prediction, target) -> scalar``.
      optimizer: an ``(init, update)`` pair, ours or optax's.
      data: arrays ``(x, target)`` with one example an entry of their first axes (or trees of such arrays), of any
        library; or an iterable of batches ``(x, target)``, a loader or a list, read anew each epoch; or a function from
        the epoch's number, from 0, to an iterable. An iterator with ``get_state`` and ``set_state`` (Grain's) resumes
        without reading again.
      epochs: how often to go through the data.
      batch_size: B, examples a step, of arrays.
      validation: data to measure after every epoch, as ``data``.
      validation_steps: of a validation set that is an iterator, or does not end, batches to measure each time. An
        iterator is read on; anything else begins anew, so that the same examples are measured.
      key: a PRNG key or a seed: of the parameters, and of dropout, by ``fold_in(key, step)``.
      seed: of the order of arrays, an integer that gives one order with every version of JAX (`data.epoch_order`).
      metrics: by name, more functions of ``(prediction, target)`` to measure.
      regularizer: ``params -> scalar``, added to the loss that is minimized.
      accumulate: parts into which a batch is split to save memory (`make_step`).
      loss_scale: the first factor on the loss, for float16 (`init`).
      start: ``(params, state)`` to begin with, instead of drawing them.
      early_stopping: epochs to wait for a better validation loss, or an `EarlyStopping`; the best weights are returned.
      checkpoint: a directory, or a `Checkpoints`; it is tried before the first step, and no other run may use it
        meanwhile.
      checkpoint_seconds: how much work may be lost when the machine dies. Saving takes at most a twentieth of the time.
      callbacks: functions ``(record, train_state)`` to call after every epoch; one that returns True (a bool of Python,
        NumPy or JAX) ends the run. The state's arrays are given back to the next step: copy what you keep
        (`jax.device_get`).
      log: a file to write the history to, a JSON line an epoch.
      shuffle: draw a new order of arrays each epoch.
      drop_last: leave out the samples that do not fill a batch, others each epoch; else a smaller last batch is
        trained on with a second program, and counts by its size in the epoch's means.
      steps_per_epoch: of an endless iterable, batches an epoch.
      mesh: devices, `jax.make_mesh`, over whose first axis to share each batch. Several processes make the same call,
        each with the whole arrays, or with an iterable of its own parts of the batches and steps_per_epoch.
      shard_parameters: also share parameters and the optimizer's state among them (fully sharded).
      max_skipped: non-finite steps in a row to skip before giving up.
      progress: whether to print, or a function that takes the lines.
      resume: "same" goes on only with a run of the same program, optimizer, start, key, batches and order as this
        call's, and else says what differs; "anyway" with any that fits.

    Returns:
      A `Fit`: params, state, history and the train state.

    Raises:
      ConfigError, DataError, NonFiniteError, CheckpointError, KeyboardInterrupt, SystemExit: as `train`, with the state
        so far on the error; DataError also for labels that the loss refuses.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, losses, optimizers, training
      >>> x = jnp.linspace(-1, 1, 64)[:, None]
      >>> net = layers.chain(layers.dense(16), jnp.tanh, layers.dense(1))
      >>> adam = optimizers.adam(0.01)
      >>> fit = training.fit(net, losses.mse, adam, (x, x**2), epochs=100, batch_size=16, progress=False)
      >>> bool(fit.history["loss"][-1] < 0.01)
      True

    Source: chapter 4.4.1, algorithm 2; 4.6.
    """
    who = "fit"
    net = as_layer(net, who)
    optimizer = optimizer_checks.optimizer(who, optimizer)
    if isinstance(data, tuple):
        data = arrays(who, data)
        x = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), data[0])
    else:
        data = Source(data, steps_per_epoch)
        data.must_last(checks.integer(who, "epochs", epochs, minimum=1))
        x = data.example[0]
    step, unguarded = (
        make_step(net, loss, optimizer, metrics=metrics, regularizer=regularizer, accumulate=accumulate, guard=guard)
        for guard in (True, False)
    )
    key = checks.key(who, key)
    if start is None:
        train_state = states.init(net, optimizer, x, key, loss_scale=loss_scale)
    else:
        begin = functools.partial(states.from_params, optimizer, loss_scale=loss_scale)
        train_state = jax.jit(lambda params, state, key: begin(params, state, jax.random.split(key)[1]))(*start, key)

    narrow = {p.dtype.name for p in jax.tree.leaves(train_state.params) if p.dtype in (jnp.float16, jnp.bfloat16)}
    if narrow and not keeps_master(train_state.opt_state):
        checks.warn(
            f"{who}: parameters are {' and '.join(sorted(narrow))}, to which a step of less than half a unit in the "
            f"last place does nothing, so that training comes to a halt early; wrap the optimizer in "
            f"optimizers.master_copy, or keep them in float32 with layers.mixed_precision(net) and a float32 x"
        )

    def explain(batch):
        for name, leaf in zip(("x", "target"), batch, strict=True):
            for array in jax.tree.leaves(leaf):
                host = np.asarray(array)
                narrow = host.dtype == jnp.bfloat16  # which NumPy's isfinite does not know
                if host.dtype.kind in "fcV" and not np.isfinite(host.astype(np.float32) if narrow else host).all():
                    return f"The batch's {name} holds NaN or Inf: drop or repair those samples"
        try:
            check_labels(net, loss, batch)
        except JaxnetError as error:
            return f"The loss refuses the batch's targets: {error}"
        return ""

    if isinstance(data, tuple):
        check_labels(net, loss, data)
    evaluate = None
    if validation is not None:
        measure = make_evaluate(net, loss, metrics=metrics, batch_size=2 * (batch_size or 128), mesh=mesh)
        validation = _validation(net, loss, validation, validation_steps, epochs, mesh)

        def measure_all(train_state, epoch):
            return measure(train_state.params, train_state.state, validation, epoch=epoch)

        evaluate = measure_all
    elif validation_steps is not None:
        raise ConfigError(f"{who}: validation_steps={validation_steps} without validation measures nothing")

    stop_early = stopping.checked(who, early_stopping, validation is not None)
    if stop_early is not None:
        measured = ["loss", *(metrics or ())]
        validated = [f"validation_{name}" for name in measured] if validation is not None else []
        ours = [name for name in COLUMNS if name != "loss" and (name != "penalty" or regularizer is not None)]
        stopping.check_column(who, stop_early.monitor, [*measured, *validated, *ours])
    identity = {}
    if checkpoint is not None:  # by itself, so that a changed rate is told from a changed network

        def update(grads, opt_state, params):
            extra = {"value": jnp.float32(0), "grad": grads, "value_fn": lambda params: jnp.float32(0)}
            return optimizer_checks.updated(who, optimizer, grads, opt_state, params, extra)

        identity["optimizer"] = of_program(update, train_state.params, train_state.opt_state, train_state.params)

    trained = loop.train(
        step, train_state, data,
        epochs=epochs, batch_size=batch_size, steps_per_epoch=steps_per_epoch, seed=seed, shuffle=shuffle,
        drop_last=drop_last, evaluate=evaluate, early_stopping=stop_early, checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds, callbacks=callbacks, log=log, mesh=mesh,
        shard_parameters=shard_parameters, max_skipped=max_skipped, progress=progress, explain=explain,
        unguarded=unguarded if loss_scale is None else None, resume=resume, identity=identity,
    )  # fmt: skip
    params, state = trained.best
    return Fit(params, state, trained.history, trained.train_state)


def _validation(net: Any, loss: Any, validation: Any, steps: int | None, epochs: int, mesh: Any) -> Any:
    """The validation set as `make_evaluate` takes it every epoch, checked before anything is trained."""
    who = "fit: validation"
    if not isinstance(validation, tuple):
        source = Source(validation, steps, who=who, bound="validation_steps", goes_on=False)
        source.must_last(epochs)
        check_labels(net, loss, source.first)
        return source
    if steps is not None:
        raise ConfigError(f"{who}: arrays are measured whole; validation_steps is for an iterable of batches")
    validation = arrays(who, validation)
    check_labels(net, loss, validation)
    validation = jax.tree.map(jnp.asarray, validation)
    if mesh is None:
        return validation
    everywhere = sharding.replicated(sharding.automatic("fit", mesh))
    return sharding.place("fit", "the validation set", validation, jax.tree.map(lambda _: everywhere, validation))
