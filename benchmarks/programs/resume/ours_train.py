from benchmarks.programs.digits import train
from jaxnet import activations, layers, losses, optimizers, training

net = layers.chain(layers.dense(64), activations.relu, layers.dense(10))
if __name__ == "__main__":
    training.fit(net, losses.softmax_cross_entropy, optimizers.adam(1e-3), train, epochs=200, batch_size=32, keep="run")
