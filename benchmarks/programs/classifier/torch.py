import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.programs.digits import test, train

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
loader = DataLoader(TensorDataset(*map(torch.from_numpy, train)), batch_size=32, shuffle=True)
for _ in range(20):
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y.long()).backward()
        optimizer.step()
x, y = map(torch.from_numpy, test)
with torch.no_grad():
    print((model(x).argmax(1) == y).float().mean().item())
