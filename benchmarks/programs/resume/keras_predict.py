import keras

from benchmarks.programs.digits import test

model = keras.models.load_model("net.keras")
print((model.predict(test[0]).argmax(-1) == test[1]).mean())
