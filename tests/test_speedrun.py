"""The Fashion-MNIST benchmark: its data, its batches, and that PyTorch's half is the same training."""

import gzip
import json
import struct
import types

import jax
import numpy as np
import pytest

from benchmarks import speedrun, timing
from benchmarks.speedrun import ablations, contestant, images, measure, ours, pytorch, recipes, trials
from benchmarks.speedrun.batches import plans
from benchmarks.speedrun.recipes import BatchNorm, Conv, Dense, Flatten, MaxPool, Patches, Recipe, Relu, Residual, Scale

TINY = Recipe(
    (
        *(Patches(2), Conv(4, 4), MaxPool(4), BatchNorm(4), Relu(), Residual((Conv(4, 4), BatchNorm(4), Relu()))),
        *(Conv(6, 4, 3, 2), BatchNorm(6), Relu(), Flatten(), Dense(10, 4 * 6), Scale(1 / 8)),
    ),
    rate=0.1,
    epochs=2,
    batch_size=20,
    evaluations=2,
    shift=2,
    flip=True,
    views=2,
    smoothing=0.1,
    average=0.5,
)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def noise():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 50).astype(np.int32)
    pictures = rng.integers(0, 256, (50, 28, 28), np.uint8)
    return images.Images(pictures[:40], labels[:40], pictures[40:], labels[40:])


@pytest.fixture
def directory(tmp_path):
    (below := tmp_path / "usr" / "share").mkdir(parents=True)
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    for name, array in zip(names, noise(), strict=True):
        write_idx(below / f"{name}-ubyte.gz", array)
    return tmp_path


def test_the_files_are_read_wherever_they_lie(directory):
    for got, wanted in zip(images.load(directory), noise(), strict=True):
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype == wanted.dtype


def test_missing_and_damaged_files(directory, tmp_path):
    with pytest.raises(SystemExit, match="apt-get download dataset-fashion-mnist"):
        images.load(tmp_path / "usr" / "nowhere")
    file = tmp_path / "damaged.gz"
    for content in (b"", b"\0\0\x0d\x01\0\0\0\x01\0", b"\0\0\x08\x01\0\0\0\x02\0"):
        file.write_bytes(gzip.compress(content))
        with pytest.raises(ValueError, match=r"damaged.gz is no idx file of bytes"):
            images.read_idx(file)


def test_every_epoch_sees_every_image_once_and_mirrors_the_others():
    recipe = TINY._replace(batch_size=15, epochs=4, evaluations=1)  # 2 batches of 40 images; 10 go to the next epoch
    found = list(plans(recipe, 40, seed=3))
    rows = np.concatenate([plan.rows.ravel() for plan in found])
    assert len(found) == 4
    assert [sorted(epoch) for epoch in rows.reshape(3, 40)] == [list(range(40))] * 3
    flips = np.concatenate([plan.flip.ravel() for plan in found]).reshape(3, 40)
    by_image = np.stack([flip[np.argsort(row)] for flip, row in zip(flips, rows.reshape(3, 40), strict=True)])
    assert (by_image[0] != by_image[1]).all()
    assert (by_image[0] == by_image[2]).all()
    assert 0 < by_image[0].sum() < 40
    shifts = np.concatenate([plan.shift.reshape(-1, 2) for plan in found])
    assert set(shifts.ravel().tolist()) == {0, 1, 2, 3, 4}
    rates = np.concatenate([plan.rate for plan in found])
    assert rates.argmax() in (1, 2)
    assert rates[0] == pytest.approx(0.02)
    assert rates[-1] < rates[1]


def test_crops_are_what_numpy_cuts():
    pictures = noise().train
    padded = np.pad(pictures, ((0, 0), (2, 2), (2, 2)))
    rows, shift, flip = np.array([3, 5]), np.array([[0, 4], [3, 1]]), np.array([False, True])
    got = np.asarray(ours.crops(jax.numpy.asarray(padded), *map(jax.numpy.asarray, (rows, shift, flip))))[..., 0]
    wanted = [padded[3, :28, 4:], padded[5, 3:31, 1:29][:, ::-1]]
    np.testing.assert_allclose(got, (np.stack(wanted) - images.MEAN) / images.DEVIATION, rtol=1e-5, atol=1e-6)


@pytest.mark.peers
def test_pytorch_takes_our_steps():
    pytest.importorskip("torch")
    data, found = noise(), []
    for make in (ours.contestant, pytorch.contestant):
        one = make(TINY._replace(evaluations=1), data)
        one.begin(*ours.initial(TINY, 1))
        one.advance(next(plans(TINY._replace(evaluations=1, epochs=1), 40, seed=1)))
        one.wait()
        found.append((one.losses(), one.weights(), one.accuracy()))
    assert found[0][0].shape == (2,)
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
    start = ours.initial(TINY, 1)
    for got, wanted, before in zip(*(jax.tree.leaves(t) for t in (found[1][1], found[0][1], start)), strict=True):
        assert np.abs(got - wanted).max() < 1e-2 * np.abs(wanted - before).max()
    assert found[0][2] == found[1][2]


@pytest.mark.peers
def test_the_next_training_begins_anew():
    """Nothing is left of what the optimizer, here Adam, was in the one before."""
    pytest.importorskip("torch")
    parts = (Flatten(), Dense(10, 28 * 28))
    recipe = Recipe(parts, rate=0.01, epochs=1, batch_size=10, optimizer="adam")
    start = ((), {"kernel": np.zeros((28 * 28, 10), np.float32), "bias": np.zeros(10, np.float32)}), ((), ())
    plan, found = next(plans(recipe, 40, seed=1)), []
    for make in (ours.contestant, pytorch.contestant):
        one = make(recipe, noise())
        for _ in range(2):
            one.begin(*start)
            one.advance(plan)
            one.wait()
            found.append(one.losses())
    for others in found[1:]:
        np.testing.assert_allclose(others, found[0], rtol=1e-3 if jax.default_backend() == "gpu" else 1e-4)


def test_the_clock_stands_still_while_it_is_evaluated(monkeypatch):
    now = [0.0]

    def takes(seconds, value=None):
        def call(*_):
            now[0] += seconds
            return value

        return call

    monkeypatch.setattr(measure, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(measure, "initial", takes(1000.0, ((), ())))
    slow = contestant.Contestant(takes(100.0), takes(1.0), takes(2.0), takes(10.0, 0.5), takes(0.0), takes(0.0))
    curve = measure.train(slow, TINY._replace(epochs=1), noise(), seed=0)
    assert curve == [(3.0, 50.0), (6.0, 50.0)]


def test_from_the_command_to_the_table(directory, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setitem(recipes.RECIPES, "90", TINY)
    monkeypatch.setattr(trials, "RECIPES", {"90": TINY})
    of_ours = ["--recipe", "90", "--library", "ours", "--seeds", "2", "--rate", "0.1", "0.2"]
    speedrun.main(["--data", str(directory), *of_ours])
    printed = capsys.readouterr().out
    assert "| 90, 2 epochs, rate 0.2 | ours | - | - | - |" in printed
    path = timing.path("speedrun", partial=True)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    records = json.loads(path.read_text())["results"]["records"]
    assert [len(record["curves"]) for record in records] == [2, 2]
    assert records[0]["prepared"] == records[1]["prepared"]
    seconds = [seconds for seconds, _ in records[0]["curves"][0]]
    assert len(seconds) == 4
    assert seconds == sorted(seconds)


def test_the_table_says_who_did_not_arrive():
    record = {"name": "a", "library": "ours", "prepared": 1.0, "curves": [[[1.0, 89.0], [2.0, 91.0]], [[1.0, 90.0]]]}
    line = measure.report([record]).splitlines()[-1]
    assert line == "| a | ours | 1.5 (1-2) | - | - | 1.5 | 90.50 (90.00-91.00) | 1 |"
    slower = record | {"name": "b", "curves": [[[2.0, 90.0]], [[3.0, 90.0]]]}
    assert [measure.soonest([slower, record], target) for target in (90, 91, 99)] == ["a", "a", "a"]
    record["curves"].append([[1.0, 50.0]])
    assert "1.5 (1-2), 2 of 3 |" in measure.report([record])


def test_an_ablation_changes_one_thing():
    recipe = recipes.RECIPES["94"]
    assert ablations.without(recipe, "all", True) == recipe
    assert ablations.without(recipe, "float32", False) is None
    assert ablations.without(TINY._replace(decay=0.0), "no weight decay", False) is None
    plain = ablations.without(recipe, "no batch norm", True)
    assert plain is not None
    assert not any(isinstance(part, BatchNorm) for part in plain.parts)
    found = trials.undone("MLP", list(ablations.ABLATIONS), "cpu")
    assert [trial.name for trial in found] == [
        "MLP, all",
        "MLP, a step a dispatch",
        "MLP, batches of 32",
        "MLP, batches of 500",
    ]
