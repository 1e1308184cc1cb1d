import keras

from benchmarks.programs.digits import test, train

model = keras.Sequential([keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10, activation="softmax")])
model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(*train, epochs=20, batch_size=32)
print(model.evaluate(*test)[1])
