"""Loaders that say where they are go on there, in the middle of an epoch and between two; and what loaders do wrong."""

import itertools
import json
import random
import re
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import data, layers, losses, optimizers, training
from jaxnet.errors import CheckpointError, ConfigError, DataError, named
from jaxnet.training import positions
from jaxnet.training.devices import Place
from jaxnet.training.sources import Source, Stream
from jaxnet.training.streamed import Streamed

X = np.arange(24, dtype=np.float32)[:, None]
Y = np.int32(X[:, 0])
STEPS = 6


class Stateful:
    """A loader with a generator of its own, whose state it tells as torchdata's loaders do: before an epoch, with how
    far it is."""

    def __init__(self):
        self.generator, self.words = np.random.default_rng(5), random.Random(1)
        self.loaded = None

    def __iter__(self):
        self.begun, self.at = self.generator.bit_generator.state, 0
        if self.loaded is not None:
            self.begun, self.at = self.loaded["generator"], self.loaded["at"]
            self.generator.bit_generator.state, self.loaded = self.begun, None
        order = self.generator.permutation(24)
        while self.at < STEPS:
            self.at += 1
            yield X[order[4 * self.at - 4 : 4 * self.at]], Y[order[4 * self.at - 4 : 4 * self.at]]

    def state_dict(self):
        return {"generator": self.begun, "at": self.at, "also": (b"1", [None, 1.5, np.arange(3)]), np.int64(7): "seven"}

    def load_state_dict(self, state):
        assert state["also"][0] == b"1"
        assert state["also"][1][:2] == [None, 1.5]
        np.testing.assert_array_equal(state["also"][1][2], [0, 1, 2])
        assert state[7] == "seven"
        self.loaded = state


def _optional(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what they import
        return pytest.importorskip(name)


def _torchdata():
    torch, loaders = _optional("torch"), _optional("torchdata.stateful_dataloader")
    torch.manual_seed(3)
    examples = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return loaders.StatefulDataLoader(examples, batch_size=4, shuffle=True)


def _nodes():
    nodes = _optional("torchdata.nodes")
    examples = nodes.Mapper(nodes.IterableWrapper(range(24)), lambda i: (X[i], Y[i]))
    return training.stream(
        nodes.Loader(nodes.Batcher(examples, 4)), pick=lambda b: tuple(map(np.stack, zip(*b, strict=True)))
    )


def _hugging_face():
    columns = {"image": X.tolist(), "label": Y.tolist()}
    examples = _optional("datasets").Dataset.from_dict(columns).with_format("numpy").to_iterable_dataset(num_shards=6)
    return training.stream(examples.shuffle(seed=1, buffer_size=1).batch(4), pick=("image", "label"))


def _grain(epochs=1):
    grain = _optional("grain")
    examples = grain.MapDataset.source(list(zip(X, Y, strict=True))).seed(2).shuffle()
    examples = examples.batch(4) if epochs == 1 else examples.repeat().batch(4)
    return examples.to_iter_dataset(grain.ReadOptions(num_threads=0))


LOADERS = {
    "state_dict": Stateful,
    "state_dict without an end": lambda: training.stream(Stateful(), steps_per_epoch=4),
    "examples": lambda: data.examples(list(zip(X, Y, strict=True)), batch_size=4, seed=3),
    "blocks": lambda: data.blocks(X, Y, batch_size=4, block=3, buffer=7),
    "torchdata": _torchdata,
    "torchdata's nodes": _nodes,
    "Hugging Face": _hugging_face,
    "Grain": _grain,
    "Grain without an end": lambda: training.stream(iter(_grain(epochs=None)), steps_per_epoch=4),
}
OWN = ("state_dict", "examples", "blocks")


def _source(name):
    given = LOADERS[name]()
    stream = given if isinstance(given, Stream) else Stream(given)
    source = Source(stream.batches, stream.steps_per_epoch, pick=stream.pick)
    source.first  # noqa: B018  # as `fit` looks at it, before it knows of any position
    return source


def _read(source, epoch, start, position, stop):
    """The first entries of batches of an epoch, from ``start`` to ``stop``, and the position after them."""
    batches, get_state, skip = source.epoch(epoch, start, position)
    assert skip == 0
    stop = stop if source.steps is None else min(stop, source.steps)
    read = [
        source.batch(epoch, start + i, batch, {})[1].tolist()
        for i, batch in enumerate(itertools.islice(batches, stop - start))
    ]
    return read, get_state and json.loads(json.dumps(positions.as_json(get_state())))


@pytest.mark.filterwarnings("ignore")  # of the loaders
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name.startswith(OWN) else pytest.mark.peers) for name in LOADERS]
)
def test_a_loader_with_a_position_goes_on_where_it_was(name):
    source = _source(name)
    steps = source.steps or STEPS
    unbroken = [_read(source, epoch, 0, None, steps + 1)[0] for epoch in range(3)]
    assert [len(epoch) for epoch in unbroken] == [steps] * 3
    assert name in ("blocks", "torchdata's nodes", "Grain", "Hugging Face") or unbroken[0] != unbroken[1]
    for epoch, at in ((0, 1), (0, steps), (1, 2), (1, steps - 1), (1, steps)):
        source = _source(name)
        position = None
        for before in range(epoch + 1):
            read, position = _read(source, before, 0, None, at if before == epoch else steps + 1)
            assert read == unbroken[before][: at if before == epoch else steps]
        source = _source(name)
        if at == steps and (epoch, at) != (0, steps):  # saved after the last batch, before the epoch was closed
            if name != "torchdata's nodes":  # which begin again by themselves
                assert _read(source, epoch, at, positions.from_json(position), steps + 1)[0] == []
            continue
        epoch, at = (epoch + 1, 0) if at == steps else (epoch, at)
        read, _ = _read(source, epoch, at, positions.from_json(position), steps + 1)
        assert read == unbroken[epoch][at:]
        if epoch == 1:
            assert _read(source, 2, 0, None, steps + 1)[0] == unbroken[2]


def test_a_position_that_cannot_be_saved_is_refused():
    with pytest.raises(CheckpointError, match="the loader's position holds a Random, which cannot be saved"):
        positions.as_json({"state": [random.Random(1)]})
    for saved in ({"json": {"at": [1, {"b": 2}]}}, {"bytes": "00ff"}):  # of older checkpoints
        assert positions.from_json(saved) in ({"at": [1, {"b": 2}]}, b"\x00\xff")


def test_set_epoch_is_called_on_a_loader_or_its_sampler():
    class Sampled(list):
        def __init__(self, holder):
            super().__init__([(X, Y)])
            self.told = []
            holder(self).set_epoch = self.told.append

    class Sampler:
        pass

    def sampler(loader):
        loader.sampler = Sampler()
        return loader.sampler

    for holder in (lambda loader: loader, sampler):
        loader = Sampled(holder)
        source = Source(loader, None)
        for epoch in range(3):
            _read(source, epoch, 0, None, 9)
        assert loader.told == [0, 1, 2]


def test_a_loader_may_fill_its_arrays_anew():
    """Of an array that is aligned to 64 bytes a CPU's JAX makes no copy by itself, as PyTorch's are."""
    raw = np.empty(96 + 64, np.uint8)
    buffer = raw[-raw.ctypes.data % 64 :][:96].view(np.float32).reshape(24, 1)

    def loader(epoch):
        for i in range(5):
            buffer[:] = i
            yield buffer, Y

    run = Streamed(_measure, Source(loader, None), Place(None, None, True, True))
    assert [loss for done in run.epoch(jnp.zeros(()), 0, 0) for loss in done.measured["loss"]] == list(range(5))


def test_a_position_is_that_after_its_batch_although_later_ones_are_fetched(monkeypatch):
    monkeypatch.setattr("jaxnet.training.feed.TARGET_SECONDS", 0)  # a look after every step

    class Loader:
        def __iter__(self):
            self.state = {"at": [0]}
            for _ in range(6):
                self.state["at"][0] += 1
                yield X, Y

        def state_dict(self):
            return self.state

        def load_state_dict(self, state):
            raise NotImplementedError

    run = Streamed(_measure, Source(Loader(), None), Place(None, None, True, True))
    found = [(done.position, done.steps) for done in run.epoch(jnp.zeros(()), 0, 0)]
    assert found == [({"at": [step]}, step) for step in range(1, 7)]


def test_arrays_in_a_position_are_copied_too():
    given = {"order": np.arange(3), "read": [(np.ones(1), 4)]}
    kept = positions.of_its_own(given)
    given["order"][:] = 7
    given["read"][0][0][:] = 7
    given["read"].append(5)
    assert kept["order"].tolist() == [0, 1, 2]
    assert kept["read"] == [(1, 4)]


# --- what loaders do wrong -------------------------------------------------------------------------------------------


def _measure(state, batch):
    return state, {"loss": jnp.mean(batch[0] @ jnp.ones((1, 1)))}


def _run(given, epochs=2):
    """Reads epochs as `fit` does, with a step that is compiled but trains nothing."""
    source = named("fit")(Source)(given, None)
    source.first  # noqa: B018
    run = Streamed(_measure, source, Place(None, None, True, True))
    for epoch in range(epochs):
        for _ in run.epoch(jnp.zeros(()), epoch, 0):
            pass


def _raises(x, y):
    raise OSError("the disk is gone")


def _ends(x, y):
    return next(iter(()))


STOPS = r"one entry an example on their first axes, got the shapes x \(8, 1\), target \(3,\)$"
FAULTS = {
    "another size": (lambda x, y: (np.ones((8, 3), np.float32), y), DataError, r"x has shape \(8, 3\), and had \(8, 1\) in the first batch, which cannot be computed with .*dot_general.*; have the loader pad or cut"),
    "another dtype": (lambda x, y: (x.astype(np.float16), y), DataError, r"is x float16 \(8, 1\), .* and the first one was x float32 .*; have the loader give one dtype"),
    "another kind": (lambda x, y: (x, y.astype(np.float32)), DataError, "target float32 .* was .*target int32 .*one dtype"),
    "another number of axes": (lambda x, y: (x[..., None], y), DataError, r"is x float32 \(8, 1, 1\), .* one number of axes"),
    "another tree": (lambda x, y: ({"a": x}, y), DataError, "is x a dict of .*'a'.* one structure"),
    "fewer targets": (lambda x, y: (x, y[:3]), DataError, STOPS),
    "no examples": (lambda x, y: (x[:0], y[:0]), DataError, "the batch is empty"),
    "nothing": (lambda x, y: None, ConfigError, "got None; nothing but its end ends an epoch"),
    "an error": (_raises, OSError, "the disk is gone"),
    "an end that is none": (_ends, RuntimeError, "generator raised StopIteration"),
}  # fmt: skip


@pytest.mark.parametrize("bad_epoch", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_its_batch_in_every_epoch(fault, bad_epoch):
    spoil, error, message = FAULTS[fault]

    def loader(epoch):
        for i in range(3):
            x, y = X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]
            yield spoil(x, y) if (epoch, i) == (bad_epoch, 1) else (x, y)

    with pytest.raises(error, match=message) as caught:
        _run(loader)
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert re.search(rf"^fit: (the loader raised this for )?epoch {bad_epoch + 1}, batch 1", said, re.MULTILINE)


def test_a_loader_that_holds_another_number_of_batches_is_refused():
    lengths = iter([3, 2])

    class Loader:
        def __iter__(self):
            return iter([(X[:8], Y[:8])] * next(lengths))

    with pytest.raises(DataError, match=r"^the loader ended after 2 batches of epoch 2, and the epoch before held 3: "):
        _run(Loader())
    _run(lambda epoch: [(X[:8], Y[:8])] * (3 - epoch))  # where a function says so, epochs may differ
    _run([(X[:8], Y[:8]), (X[:3], Y[:3])])  # a last batch may be smaller


def test_batches_of_many_shapes_are_worth_a_word(monkeypatch):
    monkeypatch.setattr("jaxnet.training.streamed.MANY_SHAPES", 3)
    with pytest.warns(UserWarning, match="the batches had 3 shapes so far, and each compiles") as caught:
        _run([(X[:size], Y[:size]) for size in (1, 2, 3, 4)], epochs=1)
    assert [warning.filename for warning in caught] == [__file__]


def test_evaluation_names_the_batch_too():
    net = layers.dense(1)
    params, state = net.init(0, X[:1])
    evaluate = training.make_evaluate(net, losses.mse)
    good, odd = (X[:8], X[:8]), (np.ones((8, 2), np.float32), X[:8])
    with pytest.raises(
        DataError, match=r"^evaluate: batch 1: x has shape \(8, 2\), and had \(8, 1\) .*dense: the input has"
    ):
        evaluate(params, state, [good, odd])
    with pytest.raises(DataError, match=r"^fit: validation: epoch 1, batch 1: x has shape"):
        training.fit(
            net, losses.mse, optimizers.sgd(0.1), [good], epochs=1, validation=[good, odd], progress=False
        )  # fmt: skip
