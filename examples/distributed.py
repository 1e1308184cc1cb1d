"""Trains a convolutional network on handwritten digits with several processes, which share each batch.

python examples/distributed.py                  # two processes on this machine, on its CPU
python examples/distributed.py --processes 4

Stopped (Ctrl-C, SIGTERM to any of the processes, or worse), the same command goes on where it was.

On a cluster every host runs one process, and all write to one file system. Tell each where process 0 listens, how many
they are and which one it is, as the scheduler knows (here Slurm):

python examples/distributed.py --coordinator host0:1234 --processes $SLURM_NTASKS --process-id $SLURM_PROCID

Under Slurm, Open MPI, Kubernetes and on Cloud TPUs, `jax.distributed.initialize()` also finds these by itself.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import activations, data, layers, losses, optimizers, training

LOCALHOST = "127.0.0.1"
GRACE = 60.0
"""Seconds that the others have to end after one process has ended, or after SIGTERM."""

ENDED = {0: 0, 143: 143, -signal.SIGINT: 130}
"""How a process ends that was done, or was stopped by SIGTERM or by Ctrl-C; and how the launcher then does."""


def network() -> layers.Layer:
    """8 rows in time, 8 columns as channels: two convolutions, whose batch norm sees the batch of all processes."""

    def block():
        return layers.chain(layers.conv(32, 3, padding="same", bias=False), layers.batch_norm(), activations.relu)

    return layers.chain(block(), layers.residual(block()), layers.flatten(), layers.dropout(0.2), layers.dense(10))


def accuracy(logits, labels):
    """The share of digits read rightly."""
    return jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))


def train(args: argparse.Namespace, **options) -> training.Fit:
    """The same call in every process: each does its part of it."""
    from sklearn.datasets import load_digits  # 1 s, for which who only launches need not wait

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / 8 - 1).astype(np.float32)  # 0..16 to -1..1
    train_set, validation, test_set = data.split(images, labels.astype(np.int32), stratify=labels)
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    net, loss = network(), losses.softmax_cross_entropy
    fit = training.fit(
        net,
        loss,
        optimizers.adam(3e-3),
        train_set,
        epochs=args.epochs,
        batch_size=args.batch_size,
        validation=validation,
        metrics={"accuracy": accuracy},
        mesh=mesh,
        keep=training.keep(args.out / "distributed", seconds=args.checkpoint_seconds),
        **options,
    )
    score = training.make_evaluate(net, loss, metrics={"accuracy": accuracy}, mesh=mesh)
    measured = score(fit.params, fit.state, test_set)
    if jax.process_index() == 0:
        print(f"test accuracy {measured['accuracy']:.2%}; processes: {jax.process_count()}", flush=True)
    return fit


def join(coordinator: str, processes: int, process_id: int) -> None:
    """Connects this process with the others, before JAX has computed anything."""
    on_one_host = coordinator.startswith(f"{LOCALHOST}:")
    jax.config.update("jax_enable_preemption_service", False)  # with it, SIGTERM would end a process only inside `fit`
    jax.distributed.initialize(
        coordinator,
        processes,
        process_id,
        coordinator_bind_address=coordinator if on_one_host else None,  # else it listens to the whole network
        heartbeat_timeout_seconds=60 if on_one_host else 100,
    )
    sys.excepthook = end_at_once


def end_at_once(kind, error, trace) -> None:
    """Ends a process that failed without its farewell to the others, for which all would wait five minutes."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    if not issubclass(kind, KeyboardInterrupt):  # with which all processes end together
        os._exit(1)


def launch(processes: int, argv: list[str]) -> int:
    """Starts the processes on this machine and waits; when one fails, the others are killed, for they would wait."""
    with socket.socket() as free:
        free.bind((LOCALHOST, 0))
        coordinator = f"{LOCALHOST}:{free.getsockname()[1]}"
    command = [sys.executable, os.path.abspath(__file__), *argv, "--coordinator", coordinator, "--process-id"]
    environment = {"JAX_PLATFORMS": "cpu", **os.environ}
    children = [
        subprocess.Popen([*command, str(i)], env=environment, stdout=subprocess.DEVNULL if i else None)
        for i in range(processes)
    ]
    deadline = float("inf")

    def stop(number, frame):
        nonlocal deadline
        deadline = time.monotonic() + GRACE
        for child in children:
            child.send_signal(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the children, too
    codes: list[int | None] = [None]
    while None in codes and set(codes) <= {None, *ENDED} and time.monotonic() < deadline:
        time.sleep(0.05)
        codes = [child.poll() for child in children]
        if not ENDED.keys().isdisjoint(codes):
            deadline = min(deadline, time.monotonic() + GRACE)
    for child in children:
        child.kill()
        child.wait()
    for i, code in enumerate(codes):
        if code not in ENDED:
            what = "did not end, and was killed" if code is None else f"ended with {code}"
            print(f"process {i} {what}", file=sys.stderr)
    return 1 if any(code not in ENDED for code in codes) else max(ENDED[code] for code in codes if code is not None)


def main(argv: list[str] | None = None) -> int:
    """Launches the processes, or is one of them; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--coordinator", help="host:port where process 0 listens")
    parser.add_argument("--process-id", type=int, help="which one this is; else all are started on this machine")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training set (default: 20)")
    parser.add_argument("--batch-size", type=int, default=48, help="digits a step, over all processes (default: 48)")
    parser.add_argument("--checkpoint-seconds", type=float, default=10.0, help="between two checkpoints (default: 10)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for checkpoints (default: out)")
    args = parser.parse_args(argv)
    if args.process_id is None:
        return launch(args.processes, argv)
    join(args.coordinator, args.processes, args.process_id)
    train(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
