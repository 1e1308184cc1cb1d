from benchmarks.programs.digits import test, train
from jaxnet import activations, layers, losses, metrics, optimizers, training

x, y = train
loss, relu = losses.softmax_cross_entropy, activations.relu
backbone = layers.chain(layers.dense(64), layers.batch_norm(), relu)
parity = training.fit(
    layers.chain(backbone, layers.dense(2)), loss, optimizers.adam(1e-3), (x, y % 2), epochs=10, batch_size=32
)

trained = training.pretrained(backbone, parity.params[0], parity.state[0])
net = layers.chain(trained, layers.dense(64), relu, layers.dense(10))
rates = optimizers.partition({"1": optimizers.adam(1e-3), "*": optimizers.adam(1e-2)})
frozen = training.stepping(freeze="0")
fit = training.fit(net, loss, optimizers.ema(rates, 0.99), train, epochs=10, batch_size=32, step=frozen)
print(metrics.accuracy(training.predict(net, fit.params, fit.state, test[0]), test[1]))
