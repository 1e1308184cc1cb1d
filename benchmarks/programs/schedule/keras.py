import keras

from benchmarks.programs.digits import test, train

model = keras.Sequential([keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10, activation="softmax")])
rate = keras.optimizers.schedules.CosineDecay(0.0, 400, warmup_target=1e-2, warmup_steps=40)
optimizer = keras.optimizers.Adam(rate, global_clipnorm=1.0, gradient_accumulation_steps=4)
model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(*train, epochs=20, batch_size=16)
print(model.evaluate(*test)[1])
