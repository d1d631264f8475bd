"""Time per training step with tfmot's masks over without, in tf_keras; prints JSON.

Run by `autoprune.py --only steps`, in a process of its own: tfmot needs legacy Keras.
"""

import json
import os
import sys

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import networks
import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras
from timing import FREQUENCY, amortized, interleave, paired_ratio

api = tfmot.sparsity.keras


def stepper(model, x, y):
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.SGD(1e-3, momentum=0.9), loss)
    callback = api.UpdatePruningStep()
    callback.set_model(model)
    callback.on_train_begin()
    return lambda: model.train_on_batch(x, y)


def masked(make, begin, frequency):
    schedule = api.ConstantSparsity(0.8, begin, frequency=frequency)
    return api.prune_low_magnitude(make(tf_keras), pruning_schedule=schedule)


def main(name, rounds):
    make = getattr(networks, name)
    random = np.random.default_rng(0)
    x = random.normal(size=(128, *make(tf_keras).input_shape[1:])).astype("float32")
    y = random.integers(0, 10, 128)
    # Masks that stand still, and masks that change in every step.
    models = make(tf_keras), masked(make, 10**9, 1), masked(make, 1, 1)
    steps = [stepper(model, x, y) for model in models]
    interleave(steps, 3)
    seconds = interleave(steps, rounds)
    held = paired_ratio(seconds[:, :2])
    gradual = amortized(seconds, FREQUENCY)
    print(json.dumps({"held": held, "gradual": gradual}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
