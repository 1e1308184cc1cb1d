"""A run that is killed, again and again, ends with the same bits as one that is not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from jaxnet import training

PROGRAM = """
import hashlib, sys, time
import jax, numpy as np
from jaxnet import activations, layers, losses, optimizers, training
from jaxnet.training import feed

feed.TARGET_SECONDS = 0.0  # one step a dispatch, each followed by a save
random = np.random.default_rng(0)
x = random.standard_normal((60, 6)).astype(np.float32)
net = layers.chain(layers.dense(8), layers.batch_norm(), activations.relu, layers.dropout(0.2), layers.dense(3))
data = x[:40], (x[:40, 0] > 0).astype(np.int32)
validation = x[40:], (x[40:, 0] > 0).astype(np.int32)
fit = training.fit(
    net, losses.softmax_cross_entropy, optimizers.adam(1e-2), data, epochs=30, batch_size=8, validation=validation,
    early_stopping=30, keep=training.keep(sys.argv[1] if len(sys.argv) > 1 else None, seconds=0.0),
    progress=lambda line: print(line, flush=True), callbacks=[lambda record, train_state: time.sleep(0.03)],
)
leaves = jax.tree.leaves((fit.params, fit.state, fit.train_state.params, fit.train_state.opt_state))
digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()
print("digest", digest, fit.history["validation_loss"].sum())
"""


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": str(Path(training.__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment
    )


def finish(process):
    try:
        output, _ = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 0
    return output.splitlines()[-1]


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    unbroken = start()
    randomly = random.Random(0)
    steps = []
    for kill in range(2):
        process = start(tmp_path)
        assert process.stdout is not None
        for line in process.stdout:  # killed while it trains and saves, not while it starts
            if line.startswith("epoch"):
                break
        time.sleep(randomly.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        latest = training.Checkpoints(tmp_path).latest()
        assert latest is not None, kill
        steps.append(training.read_metadata(latest)["step"])
    assert 0 < steps[0] < steps[1] < 150
    resumed = finish(start(tmp_path))
    assert resumed == finish(unbroken)
    assert resumed.startswith("digest")
