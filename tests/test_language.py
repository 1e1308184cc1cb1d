"""The language model of the examples: what it knows of a position, what it measures and writes, and that it goes on."""

import math
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.checkpoints import damage
from examples import language
from jaxnet import layers, training

TEXT = np.frombuffer(
    b"def f(a):\n    return a\n\n\ndef g(a, b):\n    return f(a) + f(b)\n\n\n# f(a) + f(b)\n" * 2, np.uint8
)


@pytest.fixture
def short(monkeypatch):
    for name, value in {"WINDOW": 48, "NEAR": 3, "TOGETHER": (2, 4), "REPEATED": (1, 3, 6)}.items():
        monkeypatch.setattr(language, name, value)


@pytest.fixture
def model(short):
    net = language.network(8, 1, 64)
    params, state = net.init(1, jnp.asarray(TEXT[None]))
    return net, jax.tree.map(lambda leaf: 3 * leaf, params), state  # far from even odds


def test_files_are_split_by_their_paths():
    paths = [f"package/module_{i}.py" for i in range(4000)]
    parts = [language.part(path) for path in paths]
    assert parts == [language.part(path) for path in paths]
    assert 0.04 < parts.count("test") / 4000 < 0.06
    assert 0.04 < parts.count("validation") / 4000 < 0.06
    # sha256sum of these begins with b4fa, 00d5, 101c: more than 0x1999, less than 0x0ccc, and between
    assert [language.part(path) for path in ("ast.py", "chunk.py", "enum.py")] == ["train", "test", "validation"]


def test_what_followed_is_what_a_search_finds(short):
    entries, _ = jax.jit(lambda x: language.context(64).apply((), (), x, train=False))(jnp.asarray(TEXT[None]))
    first = 257 * language.NEAR + 64 * len(language.TOGETHER)
    found = np.asarray(entries)[0, :, -len(language.REPEATED) :] - first
    for i, k in enumerate(language.REPEATED):
        for here in range(len(TEXT)):
            wanted = 256
            for earlier in range(max(k - 1, here - 48 + k), here):
                if here >= k - 1 and (TEXT[earlier - k + 1 : earlier + 1] == TEXT[here - k + 1 : here + 1]).all():
                    wanted = TEXT[earlier + 1]
            assert found[here, i] - 257 * i == wanted, (k, here)


def test_the_same_bytes_are_looked_up_as_one_entry(short):
    entries, _ = jax.jit(lambda x: language.context(2**24).apply((), (), x, train=False))(TEXT[None])
    looked_up = np.asarray(entries)[0, :, language.NEAR : language.NEAR + len(language.TOGETHER)]
    for i, k in enumerate(language.TOGETHER):
        of = {}
        for here in range(k - 1, len(TEXT)):
            of.setdefault(TEXT[here - k + 1 : here + 1].tobytes(), set()).add(looked_up[here, i])
        assert all(len(some) == 1 for some in of.values())
        assert len({entry for some in of.values() for entry in some}) == len(of)  # none of 2^24 is shared here


@pytest.mark.parametrize("cuts", [(1, 2, 60), (0, 100)])
def test_fed_in_pieces_it_knows_what_the_whole_knows(short, cuts):
    net = language.context(64)
    whole, state = jax.jit(lambda x: net.apply((), (), x, train=False))(TEXT[None])
    feed, pieces = jax.jit(partial(layers.streaming(net).apply, train=False)), []
    for piece in np.split(TEXT[None], cuts, axis=1):
        y, state = feed((), state, piece)
        pieces.append(np.asarray(y))
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def test_bits_a_byte_are_those_of_each_row_by_itself(model):
    net, params, state = model
    measured = language.measure(net, params, state, TEXT, rows=3, piece=16)
    before, total = np.concatenate([[ord("\n")], TEXT[:-1]]).astype(np.uint8), 0.0
    length = math.ceil(len(TEXT) / 3 / 16) * 16
    apply = jax.jit(lambda x: net.apply(params, state, x, train=False)[0][0])
    for row in range(0, len(TEXT), length):
        x, y = before[row : row + length], TEXT[row : row + length]
        logits = np.asarray(apply(x[None]), np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        total -= np.log2(odds[np.arange(len(y)), y] / odds.sum(axis=1)).sum()
    assert measured == pytest.approx(total / len(TEXT), rel=1e-5)


def test_it_writes_the_likeliest_bytes_of_whole_sequences(model):
    net, params, state = model
    written = language.write(net, params, state, b"def f(", 20, 1e-6, seed=0)
    text = list(b"def f(")
    padded = jax.jit(lambda x: net.apply(params, state, x, train=False)[0])
    for n in range(len(text), len(text) + 20):
        logits = np.asarray(padded(np.array([text + [0] * (26 - n)], np.uint8)))
        text.append(int(np.argmax(logits[0, n - 1])))
    assert written == bytes(text)


def final(out):
    """The step and the arrays of the last checkpoint of a run, as they lie on the disk."""
    (kept,) = {path.parent for path in out.rglob("*-step-*")}
    newest = training.Checkpoints(kept).latest()
    assert newest is not None
    return training.read_metadata(newest)["step"], damage.unsealed(newest.read_bytes())[2]


def test_a_run_that_was_stopped_goes_on(short, tmp_path, monkeypatch, capsys):
    for i in range(150):
        (tmp_path / f"module_{i}.py").write_bytes(TEXT.tobytes()[i : i + 120])
    arguments = ["--quick", "--length", "20", "--root", str(tmp_path)]
    whole = language.main([*arguments, "--out", str(tmp_path / "whole")])
    printed = capsys.readouterr().out
    assert "xz -9e" in printed
    assert f"this model {whole:.4f}" in printed
    assert (tmp_path / "whole" / "language-quick-seed0.png").read_bytes().startswith(b"\x89PNG")

    windows, calls = language.windows, iter(range(10**6))

    def stopping(*given):
        if next(calls) == 12:
            signal.raise_signal(signal.SIGINT)
        return windows(*given)

    arguments += ["--out", str(tmp_path / "stopped")]
    monkeypatch.setattr(language, "windows", stopping)
    with pytest.raises(KeyboardInterrupt):
        language.main(arguments)
    capsys.readouterr()
    language.main([*arguments, "--prompt", "def f("])
    assert "def f(" in capsys.readouterr().out
    assert final(tmp_path / "stopped") == final(tmp_path / "whole")
