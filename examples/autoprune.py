"""AutoPrune: a network for scikit-learn's digits learns which weights it needs."""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tfprune


def build(width):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(width, activation="relu", name="fc1"),
            layers.Dense(width // 2, activation="relu", name="fc2"),
            layers.Dense(10, name="fc3"),
        ]
    )


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    return model


def batches(images, labels):
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(32)


def main(width=256, epochs=60):
    images, labels = load_digits(return_X_y=True)
    images = images.astype("float32") / 16
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=450, stratify=labels, random_state=0
    )
    half = len(train_x) // 2

    model = tfprune.prune_wrap(build(width), tfprune.layers.TrainableMask)
    compiled(model)
    # Masks learn on images that the weights have not seen.
    masks = tfprune.callbacks.MaskTraining(
        batches(train_x[half:], train_y[half:]),
        strength=1e-3,
        hysteresis=0.1,
        budget=tfprune.Budget(sparsity=0.95),
    )
    weights_data = batches(train_x[:half], train_y[:half])
    model.fit(weights_data, epochs=epochs, shuffle=False, callbacks=[masks])

    compiled(model)
    model.fit(batches(train_x, train_y), epochs=epochs // 4, shuffle=False)
    sparse = compiled(tfprune.strip(model))

    kept = tfprune.read_masks(tfprune.Graph(sparse, unit="weight"))
    accuracy = sparse.evaluate(test_x, test_y, verbose=0)[1]
    number = sum(int(np.sum(mask)) for mask in kept.values())
    print(f"{number:,} weights, {kept.density():.1%} of all, accuracy {accuracy:.2%}")
    return sparse, kept


if __name__ == "__main__":
    main()
