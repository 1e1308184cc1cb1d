import torch
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader

from benchmarks.programs.digits import train

x = torch.from_numpy(train[0])
generator = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())
critic = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(), nn.Linear(64, 1))
of_generator = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
of_critic = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.999))
for _ in range(40):
    for real in DataLoader(x, batch_size=32, shuffle=True):
        made = generator(torch.randn(len(real), 16))
        of_critic.zero_grad()
        (softplus(-critic(real)).mean() + softplus(critic(made.detach())).mean()).backward()
        of_critic.step()
        of_generator.zero_grad()
        softplus(-critic(made)).mean().backward()
        of_generator.step()
with torch.no_grad():
    print((generator(torch.randn(len(x), 16)).mean(0) - x.mean(0)).abs().mean().item())
