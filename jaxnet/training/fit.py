"""Training in one call (4.6)."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet.errors import ConfigError, named
from jaxnet.layers.layer import Layer, Params, State, as_layer
from jaxnet.optimizers import _members
from jaxnet.optimizers.averaged import averages
from jaxnet.optimizers.master_copy import keeps_master
from jaxnet.training import devices, keeping, loop, pairs, sources
from jaxnet.training import state as states
from jaxnet.training.averaging import Averaged
from jaxnet.training.divergence import what_is_wrong
from jaxnet.training.early_stopping import EarlyStopping
from jaxnet.training.evaluate import make_evaluate
from jaxnet.training.freezing import as_trained, learned, mask
from jaxnet.training.history import History, Record
from jaxnet.training.identity import of_program
from jaxnet.training.pairs import Arrays
from jaxnet.training.state import TrainState, checksum
from jaxnet.training.step import Stepping, checked_metrics, make_step, stepping
from jaxnet.training.targets import check_targets
from jaxnet.training.weighted import of_pair


class Fit(NamedTuple):
    """What `fit` returns.

    Attributes:
      params: of the best epoch if ``early_stopping`` was given, else of the last; where the optimizer averages
        (`optimizers.averaged` says which do), the averages.
      state: the network's state, of the same epoch.
      history: the records of all epochs.
      train_state: after the last step, to train on with; its parameters are those that are trained.
    """

    params: Params
    state: State
    history: History
    train_state: TrainState


@named("fit")
def fit(
    net: Any,
    loss: Callable[[Any, Any], jax.Array],
    optimizer: Any,
    data: Any,
    *,
    epochs: int,
    batch_size: int | None = None,
    validation: Any = None,
    metrics: Mapping[str, Callable[[Any, Any], jax.Array]] | None = None,
    key: Any = 0,
    step: Stepping | None = None,
    early_stopping: EarlyStopping | int | None = None,
    keep: keeping.Keep | str | os.PathLike[str] | None = None,
    mesh: jax.sharding.Mesh | devices.Sharded | None = None,
    callbacks: Sequence[Callable[[Record, TrainState], Any]] = (),
    progress: bool | Callable[[str], Any] = True,
) -> Fit:
    """Trains a network: mini-batches, one compiled program, a line an epoch, and nothing lost when it is interrupted.

    Arrays ``(x, target)`` are put on the device once, and batches are sampled inside the program, many steps a
    dispatch, without compiling again for a last partial batch. With ``keep``, the run is saved every few seconds,
    at Ctrl-C and at SIGTERM, and the same call takes it up where it stopped: with the same bits, on the same machine,
    as if it had never been interrupted.

    An optimizer that averages the weights (`optimizers.averaged`) asks for the averages: they are what is validated,
    kept as best, saved for `load_best` and returned, with batch norm's statistics made anew for them (`reestimate`) of
    the first 50 training batches; of a stream, of at most 256 MB of them. ``train_state`` holds the others.

    Args:
      net: a `Layer` from x to a prediction; to begin with weights that there are, `pretrained` of it and them.
      loss: ``(prediction, target) -> scalar``; where the data have weights, it is given them as ``weights``.
      optimizer: an ``(init, update)`` pair, ours or optax's.
      data: arrays ``(x, target)``, or ``(x, target, weights)``, with one example an entry of their first axes (or trees
        of such arrays), of any library; or an iterable of batches ``(x, target)``, a loader or a list, read anew each
        epoch; or a function from the epoch's number, from 0, to an iterable. `arrays` and `stream` say more of either.
      epochs: how often to go through the data.
      batch_size: B, examples a step, of arrays ``(x, target)``.
      validation: data to measure after every epoch, as ``data``.
      metrics: by name, more functions of ``(prediction, target)`` to measure.
      key: a PRNG key or a seed: of the parameters, and of dropout, by ``fold_in(key, step)``.
      step: how a step is made, where it is not the usual way: `stepping`, with a regularizer, accumulation, a loss
        scale, and what becomes of steps that are not finite.
      early_stopping: epochs to wait for a better validation loss, or an `EarlyStopping`; the best weights are returned.
      keep: a directory for checkpoints, to go on from; or a `keep`, which says more, and where to log.
      mesh: devices, `jax.make_mesh`, over whose first axis to share each batch; or `sharded` of them, to share the
        parameters and the optimizer's state too. Several processes make the same call, each with the whole arrays, or
        with a `stream` of its own parts of the batches and steps_per_epoch.
      callbacks: functions ``(record, train_state)`` to call after every epoch; one that returns True (a bool of Python,
        NumPy or JAX) ends the run, and numbers that it puts in the record are columns of the history. `per_step` of a
        function looks at every step; `tensorboard`, `wandb` and `trackio` write both. The state's arrays are given back
        to the next step: copy what you keep (`jax.device_get`).
      progress: whether to print, or a function that takes the lines.

    Returns:
      A `Fit`: params, state, history and the train state.

    Raises:
      ConfigError, DataError, DTypeError, ShapeError, NonFiniteError, CheckpointError, KeyboardInterrupt, SystemExit: as
        `train`, with the state so far on the error; DataError also for labels that the loss refuses.

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
    net = as_layer(net, "net")
    of_pair("loss", loss)
    optimizer, metrics = _members.member(optimizer), checked_metrics(metrics)
    epochs = checks.integer("epochs", epochs, minimum=1)
    data = sources.given(data, batch_size, epochs=epochs)
    keep, mesh, options = keeping.given(keep), devices.given(mesh), step or stepping()
    if not isinstance(options, Stepping):
        raise ConfigError(f"step must be what training.stepping returns, got {words.came(options)}")

    make = functools.partial(
        make_step, net, loss, optimizer, metrics=metrics, regularizer=options.regularizer,
        accumulate=options.accumulate, count=options.count, freeze=options.freeze,
    )  # fmt: skip
    if isinstance(data, Arrays) and options.accumulate > data.batch_size:
        raise ConfigError(
            f"accumulate={options.accumulate} parts of batches of {data.batch_size} would have no example each; give "
            f"at most {data.batch_size}, or a larger batch_size, which is that of all parts together"
        )
    guarded, unguarded = make(guard=options.guard), make(guard=False)
    x = pairs.of_size(1, data.first[0]) if isinstance(data, Arrays) else data.first[0]
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x)
    train_state = states.init(net, optimizer, x, checks.key(key), loss_scale=options.loss_scale, freeze=options.freeze)
    part = learned(train_state.params, options.freeze)
    _warn_of_narrow(part, train_state.opt_state)
    if isinstance(data, Arrays):
        check_targets(net, loss, data.pair)
    weights = None
    if averages(train_state.opt_state):
        weights = Averaged(as_trained(net, train_state.params, options.freeze), data, mesh and mesh.mesh)
    evaluate = None
    if validation is not None:
        size = 2 * (data.batch_size if isinstance(data, Arrays) else 128)
        make = functools.partial(
            make_evaluate, net, loss, metrics=metrics, count=options.count, mesh=mesh and mesh.mesh
        )
        evaluate = _evaluation(make, net, loss, validation, size, epochs, weights)

    if keep.checkpoints is not None:  # the rule by itself, so that a changed rate is told from a changed network
        identity = {**keep.identity, "optimizer": _identity(optimizer, part, train_state.opt_state)}
        if options.freeze is not None:
            identity["freeze"] = f"{checksum(jax.tree.map(np.array, mask(train_state.params, options.freeze))):08x}"
        keep = keep._replace(identity=identity)

    trained = loop.train(
        guarded, train_state, data, epochs=epochs, evaluate=evaluate, early_stopping=early_stopping, keep=keep,
        weights=weights, mesh=mesh, callbacks=callbacks, progress=progress, max_skipped=options.max_skipped,
        explain=functools.partial(what_is_wrong, net, loss),
        unguarded=unguarded if options.loss_scale is None and options.guard is True else None,
    )  # fmt: skip
    params, state = trained.best
    return Fit(params, state, trained.history, trained.train_state)


def _warn_of_narrow(params: Params, opt_state: Any) -> None:
    narrow = {p.dtype.name for p in jax.tree.leaves(params) if p.dtype in (jnp.float16, jnp.bfloat16)}
    if narrow and not keeps_master(opt_state):
        checks.warn(
            f"parameters are {' and '.join(sorted(narrow))}, to which a step of less than half a unit in the "
            f"last place does nothing, so that training comes to a halt early; wrap the optimizer in "
            f"optimizers.master_copy, or keep them in float32 with layers.mixed_precision(net) and a float32 x"
        )


def _identity(optimizer: Any, params: Params, opt_state: Any) -> str:
    """A fingerprint of the optimizer's rule and its settings."""

    def update(grads, opt_state, params):
        extra = {"value": jnp.float32(0), "grad": grads, "value_fn": lambda params: jnp.float32(0)}
        return _members.updated(optimizer, grads, opt_state, params, extra)

    return of_program(update, params, opt_state, params)


@named("fit: validation")
def _evaluation(
    make: Any, net: Layer, loss: Any, validation: Any, size: int, epochs: int, weights: Any
) -> Callable[..., dict[str, float]]:
    """Measures the validation set after an epoch; the set is checked, and put in its place, before any training."""
    size_of_arrays = size if isinstance(validation, tuple) else None
    validation = sources.given(sources.in_full(validation), size_of_arrays, epochs=epochs, goes_on=False)
    check_targets(net, loss, validation.first)
    held_out: Any = validation
    if isinstance(validation, Arrays):
        size = validation.batch_size
        devices.must_agree("the validation set", validation.pair)
        held_out = devices.everywhere(validation.pair, make.keywords["mesh"])
    measure = make(batch_size=size)

    def evaluate(train_state, epoch):
        params, state = weights(train_state) if weights else (train_state.params, train_state.state)
        return measure(params, state, held_out, epoch=epoch)

    evaluate.names = ("loss", *(make.keywords["metrics"] or ()))  # type: ignore[attr-defined]  # what `train` will find in the records
    return evaluate
