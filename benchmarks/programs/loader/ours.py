import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.programs.digits import test, train, weights
from jaxnet import activations, layers, losses, metrics, optimizers, training

loader = DataLoader(TensorDataset(*map(torch.from_numpy, (*train, weights))), batch_size=32, shuffle=True)
net = layers.chain(layers.dense(64), activations.relu, layers.dense(10))
fit = training.fit(net, losses.softmax_cross_entropy, optimizers.adam(1e-3), loader, epochs=20)
print(metrics.accuracy(training.predict(net, fit.params, fit.state, test[0]), test[1]))
