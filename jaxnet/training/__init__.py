"""Training (4.6): the compiled step, the loop around it, and what keeps a run safe."""

from jaxnet.training.callbacks import PerStep, per_step
from jaxnet.training.checkpoint import load, read_metadata, save
from jaxnet.training.checkpoints import Checkpoints, load_best
from jaxnet.training.devices import sharded
from jaxnet.training.early_stopping import EarlyStopping
from jaxnet.training.evaluate import make_evaluate
from jaxnet.training.export import ExportedNet, export, load_exported
from jaxnet.training.fit import Fit, fit
from jaxnet.training.gan import GANState, Player, init_gan, make_gan_step
from jaxnet.training.history import History
from jaxnet.training.keeping import keep
from jaxnet.training.loop import Trained, train
from jaxnet.training.onnx import export_onnx
from jaxnet.training.pairs import arrays
from jaxnet.training.partial import Loaded, load_partial
from jaxnet.training.predict import predict
from jaxnet.training.pruning import Halving
from jaxnet.training.reestimate import reestimate
from jaxnet.training.settings import grid
from jaxnet.training.sources import stream
from jaxnet.training.state import Guard, LossScale, TrainState, init, pretrained
from jaxnet.training.step import make_step, stepping
from jaxnet.training.sweep import Sweep, sweep
from jaxnet.training.trackers import Tracker, tensorboard, trackio, wandb

__all__ = [
    "Checkpoints",
    "EarlyStopping",
    "ExportedNet",
    "Fit",
    "GANState",
    "Guard",
    "Halving",
    "History",
    "Loaded",
    "LossScale",
    "PerStep",
    "Player",
    "Sweep",
    "Tracker",
    "TrainState",
    "Trained",
    "arrays",
    "export",
    "export_onnx",
    "fit",
    "grid",
    "init",
    "init_gan",
    "keep",
    "load",
    "load_best",
    "load_exported",
    "load_partial",
    "make_evaluate",
    "make_gan_step",
    "make_step",
    "per_step",
    "predict",
    "pretrained",
    "read_metadata",
    "reestimate",
    "save",
    "sharded",
    "stepping",
    "stream",
    "sweep",
    "tensorboard",
    "trackio",
    "train",
    "wandb",
]
