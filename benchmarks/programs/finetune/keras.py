import keras
from keras import layers, optimizers

from benchmarks.programs.digits import test, train

x, y = train
loss = "sparse_categorical_crossentropy"
backbone = keras.Sequential([layers.Dense(64), layers.BatchNormalization(), layers.ReLU()])
parity = keras.Sequential([backbone, layers.Dense(2, activation="softmax")])
parity.compile(optimizers.Adam(1e-3), loss)
parity.fit(x, y % 2, epochs=10, batch_size=32)

backbone.trainable = False
neck = layers.Dense(64, activation="relu", name="neck")
model = keras.Sequential([backbone, neck, layers.Dense(10, activation="softmax")])
slow, fast = (optimizers.Adam(rate, use_ema=True, ema_momentum=0.99) for rate in (1e-3, 1e-2))
model.compile(optimizers.MultiOptimizer(optimizers.OptimizerMap(fast, {"neck/.*": slow})), loss, metrics=["accuracy"])
model.fit(*train, epochs=10, batch_size=32)
print(model.evaluate(*test)[1])
