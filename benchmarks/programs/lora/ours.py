from benchmarks.programs.digits import test, train
from jaxnet import activations, layers, losses, metrics, optimizers, training

x, y = train
loss = losses.softmax_cross_entropy
net = layers.chain(layers.dense(64), activations.relu, layers.dense(10))
base = training.fit(net, loss, optimizers.adam(1e-3), (x, y), epochs=20, batch_size=32)

adapted = layers.low_rank(net, 4, base.params, base.state)
only = training.stepping(freeze="!*low_rank")
fit = training.fit(adapted, loss, optimizers.adam(1e-2), (x[:, ::-1], y), epochs=10, batch_size=32, step=only)
print(metrics.accuracy(training.predict(adapted, fit.params, fit.state, test[0][:, ::-1]), test[1]))
