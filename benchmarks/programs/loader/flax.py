import optax
import torch
from flax import nnx
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.programs.digits import test, train, weights

loader = DataLoader(TensorDataset(*map(torch.from_numpy, (*train, weights))), batch_size=32, shuffle=True)
rngs = nnx.Rngs(0)
model = nnx.Sequential(nnx.Linear(64, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 10, rngs=rngs))
optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, x, y, w):
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y) @ w / w.sum()

    optimizer.update(model, nnx.grad(loss)(model))


for _ in range(20):
    for batch in loader:
        step(model, optimizer, *(part.numpy() for part in batch))
print((model(test[0]).argmax(-1) == test[1]).mean())
