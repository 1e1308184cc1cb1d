"""A run that is killed, again and again, ends with the same bits as one that is not."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from jaxnet import activations, layers, losses, optimizers, training
from jaxnet.training import feed

ROOT = Path(__file__).parents[2]
# One step a dispatch, each followed by a save; and the process is killed with the checkpoint of a step, or just before.
PROGRAM = """
import math, os, re, signal, sys
from jaxnet.training import feed, keeping
from jaxnet.training.beside import Beside
from tests.training import test_kill

feed.TARGET_SECONDS, keeping.SAVE_SHARE, Beside.busy = 0.0, math.inf, False
directory, when, step = sys.argv[1:]
replace = os.replace

def move(source, target):
    kill = re.search(rf"-step-{step}\\b", str(target))
    if not kill or when == "after":
        replace(source, target)
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = move
test_kill.run(directory)
"""


def run(directory=None):
    """Trains; returns a digest of all that it ended with."""
    random = np.random.default_rng(0)
    x = random.standard_normal((60, 6)).astype(np.float32)
    net = layers.chain(layers.dense(8), layers.batch_norm(), activations.relu, layers.dropout(0.2), layers.dense(3))
    data = x[:40], (x[:40, 0] > 0).astype(np.int32)
    validation = x[40:], (x[40:, 0] > 0).astype(np.int32)
    fit = training.fit(
        net, losses.softmax_cross_entropy, optimizers.adam(1e-2), data, epochs=30, batch_size=8, validation=validation,
        early_stopping=30, keep=training.keep(directory, seconds=0.0), progress=False,
    )  # fmt: skip
    leaves = jax.tree.leaves((fit.params, fit.state, fit.train_state.params, fit.train_state.opt_state))
    digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()
    return digest, int(fit.train_state.step), fit.history["validation_loss"].tolist()


def test_a_killed_run_ends_with_the_same_bits(tmp_path, monkeypatch, on_the_cpu):
    """Within an epoch of 5 steps. What is killed is a process of its own; the others are runs of this one."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for when, step, kept in (("after", 7, 7), ("before", 53, 52)):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), when, str(step)]
        killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        latest = training.Checkpoints(tmp_path).latest()
        assert latest is not None
        assert training.read_metadata(latest)["step"] == kept
    monkeypatch.setattr(feed, "TARGET_SECONDS", 0.0)
    resumed = run(tmp_path)
    assert resumed == run()
    assert resumed[1] == 150
