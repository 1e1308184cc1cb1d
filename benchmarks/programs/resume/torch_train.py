import os

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.programs.digits import train

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
if __name__ == "__main__":
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(*map(torch.from_numpy, train)), batch_size=32, shuffle=True)
    first = 0
    if os.path.exists("run.pt"):
        saved = torch.load("run.pt")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epoch"] + 1
    for epoch in range(first, 200):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y.long()).backward()
            optimizer.step()
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(saved, "run.pt.new")
        os.replace("run.pt.new", "run.pt")
