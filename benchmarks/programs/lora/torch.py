import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.programs.digits import test, train


class LowRank(nn.Module):
    def __init__(self, layer, rank):
        super().__init__()
        self.down = nn.Parameter(torch.randn(layer.in_features, rank) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(rank, layer.out_features))

    def forward(self, weight):
        return weight + (self.down @ self.up).T


def fit(model, rate, x, y, epochs):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(epochs):
        for x_batch, y_batch in DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x_batch), y_batch).backward()
            optimizer.step()


x, y = torch.from_numpy(train[0]), torch.from_numpy(train[1]).long()
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
fit(model, 1e-3, x, y, epochs=20)

model.requires_grad_(False)
for layer in (model[0], model[2]):
    register_parametrization(layer, "weight", LowRank(layer, 4))
fit(model, 1e-2, x.flip(1), y, epochs=10)
x, y = map(torch.from_numpy, test)
with torch.no_grad():
    print((model(x.flip(1)).argmax(1) == y).float().mean().item())
