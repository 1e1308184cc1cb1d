from benchmarks.programs.digits import test, train
from jaxnet import activations, layers, losses, metrics, optimizers, training

net = layers.chain(layers.dense(64), activations.relu, layers.dense(10))
fit = training.fit(net, losses.softmax_cross_entropy, optimizers.adam(1e-3), train, epochs=20, batch_size=32)
print(metrics.accuracy(training.predict(net, fit.params, fit.state, test[0]), test[1]))
