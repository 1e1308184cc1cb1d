import keras

from benchmarks.programs.digits import test, train

x, y = train
loss = "sparse_categorical_crossentropy"
model = keras.Sequential([keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10, activation="softmax")])
model.compile(keras.optimizers.Adam(1e-3), loss)
model.fit(x, y, epochs=20, batch_size=32)

for layer in model.layers:
    layer.enable_lora(4)
    layer.bias.trainable = False
model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
model.fit(x[:, ::-1], y, epochs=10, batch_size=32)
print(model.evaluate(test[0][:, ::-1], test[1])[1])
