from benchmarks.programs.digits import test, train
from jaxnet import activations, layers, losses, metrics, optimizers, training

net = layers.chain(layers.dense(64), activations.relu, layers.dense(10))
rate = optimizers.warmup_cosine_decay_schedule(0.0, 1e-2, 40, 440)
optimizer = optimizers.chain(optimizers.clip_by_global_norm(1.0), optimizers.adam(rate))
parts = training.stepping(accumulate=4)
fit = training.fit(net, losses.softmax_cross_entropy, optimizer, train, epochs=20, batch_size=64, step=parts)
print(metrics.accuracy(training.predict(net, fit.params, fit.state, test[0]), test[1]))
