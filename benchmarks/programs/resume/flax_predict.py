import os

import orbax.checkpoint as ocp
from flax import nnx

from benchmarks.programs.digits import test
from benchmarks.programs.resume.flax_train import model

with ocp.CheckpointManager(os.path.abspath("run"), item_names=("model", "optimizer")) as manager:
    like = ocp.args.Composite(model=ocp.args.StandardRestore(nnx.state(model)))
    nnx.update(model, manager.restore(manager.latest_step(), args=like)["model"])
print((model(test[0]).argmax(-1) == test[1]).mean())
