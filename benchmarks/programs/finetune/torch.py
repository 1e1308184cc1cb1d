import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.programs.digits import test, train


def fit(model, optimizer, x, y, after=lambda: None):
    for _ in range(10):
        for x_batch, y_batch in DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x_batch), y_batch).backward()
            optimizer.step()
            after()


x, y = torch.from_numpy(train[0]), torch.from_numpy(train[1]).long()
backbone = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())
parity = nn.Sequential(backbone, nn.Linear(64, 2))
fit(parity, torch.optim.Adam(parity.parameters(), lr=1e-3), x, y % 2)

backbone.requires_grad_(False)
backbone[1].eval()  # its statistics stay too; nothing below calls model.train()
neck, head = nn.Linear(64, 64), nn.Linear(64, 10)
model = nn.Sequential(backbone, neck, nn.ReLU(), head)
groups = [{"params": neck.parameters(), "lr": 1e-3}, {"params": head.parameters(), "lr": 1e-2}]
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
fit(model, torch.optim.Adam(groups), x, y, after=lambda: average.update_parameters(model))
x, y = map(torch.from_numpy, test)
with torch.no_grad():
    print((average.eval()(x).argmax(1) == y).float().mean().item())
