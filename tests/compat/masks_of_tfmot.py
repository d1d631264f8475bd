"""Runs tfmot itself, in tf_keras: python masks_of_tfmot.py CASES.json OUT.npz

Every case is trained for some steps with weights that are set anew before each, and the
masks after each step are written out. For `test_tfmot.py`, in a process of its own.
"""

import json
import os
import sys

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras

api = tfmot.sparsity.keras


def model_of(case):
    shape = case["shape"]
    if len(shape) == 2:
        return tf_keras.Sequential(
            [tf_keras.layers.Dense(shape[1], input_shape=shape[:1], use_bias=False)]
        )
    size = (shape[0] + 1, shape[1] + 1, shape[2])
    return tf_keras.Sequential(
        [
            tf_keras.layers.Conv2D(
                shape[3], shape[:2], input_shape=size, use_bias=False
            ),
            tf_keras.layers.Flatten(),
        ]
    )


class Watch(tf_keras.callbacks.Callback):
    """Sets new weights before every step, and looks at the mask behind it."""

    def __init__(self, wrapper, values):
        super().__init__()
        self.wrapper, self.values, self.masks = wrapper, values, []

    def on_train_batch_begin(self, batch, logs=None):
        self.wrapper.pruning_vars[0][0].assign(self.values[len(self.masks)])

    def on_train_batch_end(self, batch, logs=None):
        self.masks.append(self.wrapper.pruning_vars[0][1].numpy() > 0)


def masks(case, values):
    kind, arguments = case["schedule"]
    settings = {"pruning_schedule": getattr(api, kind)(**arguments), **case["settings"]}
    model = api.prune_low_magnitude(model_of(case), **settings)
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    watch = Watch(model.layers[0], values)
    x = np.ones((len(values), *model.input_shape[1:]))
    y = np.ones((len(values), *model.output_shape[1:]))
    callbacks = [api.UpdatePruningStep(), watch]
    model.fit(x, y, batch_size=1, verbose=0, callbacks=callbacks)
    return np.array(watch.masks)


def pruned_model(path):
    """Writes a model that tfmot has pruned, its outputs, and it as a file."""
    schedule = api.ConstantSparsity(0.75, 0, frequency=1)
    layers = tf_keras.layers
    x = inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    y = layers.Conv2D(6, 3, padding="same", name="branch")(x)
    x = layers.Flatten()(layers.Add()([x, y]))
    model = tf_keras.Model(inputs, layers.Dense(4, name="logits")(x))
    model = api.prune_low_magnitude(model, pruning_schedule=schedule)
    model.compile("adam", "mse")
    data = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")
    callbacks = [api.UpdatePruningStep()]
    model.fit(data, np.ones((32, 4)), verbose=0, callbacks=callbacks)
    np.savez(path, x=data, y=api.strip_pruning(model).predict(data, verbose=0))
    model.save(f"{path}.h5")


if __name__ == "__main__":
    cases, out = json.loads(open(sys.argv[1]).read()), sys.argv[2]
    given = np.load(f"{sys.argv[1]}.npz")
    np.savez(out, **{name: masks(case, given[name]) for name, case in cases.items()})
    pruned_model(f"{out}.model")
