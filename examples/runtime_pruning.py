"""Static and runtime pruning: a network learns what each digit can do without.

What that saves in time, on maps large enough, is what benchmarks/runtime_pruning.py
measures; these are too small.
"""

import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tfprune
from tfprune.layers import RuntimeGate


def build(width):
    layers = keras.layers
    x = inputs = keras.Input((8, 8, 1))
    x = layers.UpSampling2D(2)(x)
    for number, times in enumerate((1, 2, 2)):
        x = layers.Conv2D(width * times, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.MaxPooling2D()(x) if number < 2 else x
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def compiled(model, rate):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


def main(width=32, epochs=(15, 30)):
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=450, stratify=labels, random_state=0
    )
    train = tf.data.Dataset.from_tensor_slices((train_x, train_y))
    train = train.shuffle(len(train_x), seed=0).batch(64)

    base = compiled(build(width), 2e-3)
    base.fit(train, epochs=epochs[0], verbose=0)

    model = tfprune.prune_wrap(
        base, RuntimeGate, keep_ratio=0.5, runtime_ratio=0.5, block=4
    )
    compiled(model, 2e-3)
    # Few phases, so at a higher rate than the paper's many.
    agents = tfprune.callbacks.PolicyTraining(train, learning_rate=3e-4)
    model.fit(train, epochs=epochs[1], callbacks=[agents])

    small = tfprune.compact(model)
    fast = tfprune.runtime.deploy(small)
    with tempfile.TemporaryDirectory() as folder:
        path = tfprune.export(fast, Path(folder) / "fast")
        artefact = tf.saved_model.load(str(path))
        logits = np.concatenate([artefact.serve(image[None]) for image in test_x])

    shares = tfprune.runtime.work(model, test_x)
    accuracy = float(np.mean(logits.argmax(axis=-1) == test_y))
    before = base.evaluate(test_x, test_y, verbose=0)[1]
    kept = tfprune.runtime.kept_channels(small, test_x)
    sets = sum(len(np.unique(mask, axis=0)) for mask in kept.values())
    print(f"accuracy {before:.2%} before, {accuracy:.2%} of the exported model")
    print(f"{shares.mean():.0%} of the work, {sets} sets of channels over all layers")
    return accuracy, shares


if __name__ == "__main__":
    main()
