"""How many steps a run of a vocoder's training takes, measured once and kept with the run."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from examples.vocoder.phases import Phase
from jaxnet.errors import ConfigError
from jaxnet.training.identity import changes
from jaxnet.training.state import copied

FILE = "run.json"


class Plan(NamedTuple):
    """How long a phase is.

    Attributes:
      epochs: after each of which is validated.
      steps_per_epoch: steps of each.
    """

    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """In all."""
        return self.epochs * self.steps_per_epoch


def plan_steps(steps: int) -> Plan:
    """A plan of about ``steps`` steps, in epochs of at least 25."""
    epochs = max(1, min(20, steps // 25))
    return Plan(epochs, max(1, steps // epochs))


def plan_seconds(seconds: float, step_seconds: float, epoch_seconds: float) -> Plan:
    """A plan that takes ``seconds``, from the time of a step and of what comes after an epoch.

    An epoch is at least 15 s, and a fifth of the time at most goes to what comes after epochs; but there is one epoch
    of one step at least, however long they take.
    """
    epochs = int(max(1, min(24, seconds / 15, 0.2 * seconds / epoch_seconds)))
    steps = (seconds - epochs * epoch_seconds) / step_seconds
    return Plan(epochs, max(1, int(steps / epochs)))


def held_out(run: Path, folder: Path) -> tuple[list[str], list[str]] | None:
    """The names that a run holds out, to validate and to test; None where ``folder`` is not the run's, nor like it.

    A folder that was moved has all the files that are held out.
    """
    data = of_run(run)
    if data is None:
        return None
    names = [*data["validation"], *data["test"]]
    moved = all((folder / name).exists() or (folder / name.rsplit("@", 1)[0]).exists() for name in names)
    return (data["validation"], data["test"]) if moved or data["folder"] == str(folder.resolve()) else None


def of_run(run: Path) -> dict[str, Any] | None:
    """The folder and the names that are held out of a run's speech, as its file says; None without that file."""
    return json.loads((run / FILE).read_text()).get("data") if (run / FILE).exists() else None


class Run:
    """A directory that holds a run, and its ``run.json``: what the run is, and the plan as far as it is made.

    Args:
      directory: of the run.
      settings: what the run is. If the directory holds a run already, it must have been the same.
      data: where its speech is, and what is held out; kept as it was when the run began.

    Raises:
      ConfigError: the directory holds another run.
    """

    def __init__(self, directory: Path, settings: dict[str, Any], data: dict[str, Any]):
        self.directory, self.file = directory, directory / FILE
        settings = json.loads(json.dumps(settings))
        if self.file.exists():
            self.content = json.loads(self.file.read_text())
            was = self.content["settings"]
            if was != settings:
                raise ConfigError(
                    f"train: the run in {directory} had other settings ({changes(was, settings)}); give the same "
                    f"to go on with it, or another --out"
                )
        else:
            self.content = {"settings": settings, "data": data, "plan": {}}

    def plan(self, phase: str, make: Callable[[], Plan]) -> Plan:
        """The plan of a phase: as it was made before, or made now, and kept."""
        if phase not in self.content["plan"]:
            self.content["plan"][phase] = make()._asdict()
            self.directory.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.content, indent=1) + "\n")
            temporary.replace(self.file)
        return Plan(**self.content["plan"][phase])


def seconds_per_step(phase: Phase, batch: Any, count: int = 10) -> float:
    """Compiles a phase's step, as `training.train` will, and times it; the median of a few."""
    program = jax.jit(phase.step, donate_argnums=0)
    train_state = copied(phase.start())  # which is donated, with parameters that may be another phase's
    times = []
    for _ in range(count + 2):
        began = time.perf_counter()
        train_state, metrics = program(train_state, batch)
        jax.block_until_ready((train_state, metrics))
        times.append(time.perf_counter() - began)
    return float(np.median(times[2:]))
