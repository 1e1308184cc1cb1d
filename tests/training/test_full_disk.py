"""A disk that becomes full in the middle of a run: a file system of 1 MB, which the kernel itself says is full."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxnet import training

PROGRAM = """
import errno, sys
from pathlib import Path
import jax, numpy as np
from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import CheckpointError
from jaxnet.training import feed, keeping
from jaxnet.training.beside import Beside

# One step a dispatch, each followed by a save, which waits for the one before: when the disk fills up, some are whole.
feed.TARGET_SECONDS, keeping.SAVE_SHARE, Beside.busy = 0.0, np.inf, False
disk, net = Path(sys.argv[1]), layers.dense(40)
x = np.random.default_rng(0).standard_normal((32, 40)).astype(np.float32)


def fill(record, train_state):
    if record["epoch"] == 2:
        with open(disk / "of another", "wb", 0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC
            file.truncate(file.tell() - 8192)  # a part of a checkpoint fits


def fit(*callbacks, keep=None):
    return training.fit(
        net, losses.mse, optimizers.adam(0.01), (x, x), epochs=4, batch_size=16, keep=keep, callbacks=callbacks,
        progress=False,
    )


keep = training.keep(disk / "run", seconds=0, best=False)
try:
    fit(fill, keep=keep)
except CheckpointError as error:
    print(error)
    stopped = error.train_state
files = sorted(path.name for path in (disk / "run").iterdir())
assert not [name for name in files if name.endswith("new")], files
(*_, latest) = training.Checkpoints(disk / "run").paths()
step = training.read_metadata(latest)["step"]
assert 0 < step <= 4 <= int(stopped.step), (step, stopped.step)
kept = training.load(latest, stopped.params, under="train_state/params")
assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(kept))
try:
    fit(keep=keep)
except CheckpointError as error:
    print(error)
(disk / "of another").unlink()
lines = fit(keep=keep), fit()
jax.tree.map(np.testing.assert_array_equal, *[(run.params, run.train_state.opt_state) for run in lines])
print("went on")
"""


def mounted(folder, *command):
    """A command that sees a file system of 1 MB at the folder, which goes with the command's process."""
    reason = "no unshare"
    for unshare in (["unshare", "-rm"], ["unshare", "-m"]) if shutil.which("unshare") else ():
        mount = [*unshare, "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"', str(folder)]
        tried = subprocess.run([*mount, "true"], capture_output=True, text=True, timeout=120)
        if tried.returncode == 0:
            return [*mount, *command]
        reason = tried.stderr.strip()
    pytest.skip(f"no file system can be mounted here: {reason}")


def test_the_run_ends_with_its_state_and_goes_on_when_there_is_room(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(training.__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    command = mounted(tmp_path, sys.executable, "-c", PROGRAM, str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    full, still_full, went_on = done.stdout.splitlines()
    assert full.startswith("fit: cannot write ")
    assert "No space left on device" in full
    assert "is in error.train_state" in full
    assert "No space left on device" in still_full
    assert went_on == "went on"
    assert not list(tmp_path.iterdir())  # the other side of the mount
