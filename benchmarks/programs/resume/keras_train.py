import keras

from benchmarks.programs.digits import train

model = keras.Sequential([keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10, activation="softmax")])
model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(*train, epochs=200, batch_size=32, callbacks=[keras.callbacks.BackupAndRestore("run")])
model.save("net.keras")
