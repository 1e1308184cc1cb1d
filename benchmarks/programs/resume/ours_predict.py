from benchmarks.programs.digits import test
from benchmarks.programs.resume.ours_train import net
from jaxnet import metrics, training

params, state = training.load_best("run", net, test[0])
print(metrics.accuracy(training.predict(net, params, state, test[0]), test[1]))
