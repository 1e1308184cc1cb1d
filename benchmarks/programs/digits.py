"""The data of all programs: scikit-learn's handwritten digits, 8 x 8 pixels as 64 numbers in [0, 1]."""

import numpy as np
from sklearn.datasets import load_digits

x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype(np.float32), y.astype(np.int32)
order = np.random.default_rng(0).permutation(len(x))
train = x[order[:1440]], y[order[:1440]]
test = x[order[1440:]], y[order[1440:]]
weights = np.where(train[1] == 8, 2, 1).astype(np.float32)  # eights, which are mistaken most, count double
