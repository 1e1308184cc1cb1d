import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.programs.digits import test, train

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
rise, fall = LinearLR(optimizer, 1e-3, total_iters=40), CosineAnnealingLR(optimizer, 400)
scheduler = SequentialLR(optimizer, [rise, fall], milestones=[40])
loader = DataLoader(TensorDataset(*map(torch.from_numpy, train)), batch_size=16, shuffle=True)
for _ in range(20):
    for i, (x, y) in enumerate(loader, 1):
        (nn.functional.cross_entropy(model(x), y.long()) / 4).backward()
        if i % 4 == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    optimizer.zero_grad()
x, y = map(torch.from_numpy, test)
with torch.no_grad():
    print((model(x).argmax(1) == y).float().mean().item())
