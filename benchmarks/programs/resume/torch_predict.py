import torch

from benchmarks.programs.digits import test
from benchmarks.programs.resume.torch_train import model

model.load_state_dict(torch.load("run.pt")["model"])
x, y = map(torch.from_numpy, test)
with torch.no_grad():
    print((model(x).argmax(1) == y).float().mean().item())
