"""tfmot's own tutorial on Keras 3: only the import of tfmot has changed."""

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tfprune
from tfprune.compat import tfmot


def build():
    return keras.Sequential(
        [
            keras.Input((8, 8)),
            keras.layers.Reshape((8, 8, 1)),
            keras.layers.Conv2D(12, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def main(epochs=20, batch_size=32):
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8).astype("float32") / 16
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=450, stratify=labels, random_state=0
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = build()
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(train_x, train_y, batch_size=batch_size, epochs=epochs)

    steps = int(np.ceil(len(train_x) / batch_size)) * epochs
    schedule = tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=0.5,
        final_sparsity=0.8,
        begin_step=0,
        end_step=steps,
        frequency=20,
    )
    pruned = tfmot.sparsity.keras.prune_low_magnitude(model, pruning_schedule=schedule)
    pruned.compile("adam", loss, metrics=["accuracy"])
    callbacks = [tfmot.sparsity.keras.UpdatePruningStep()]
    pruned.fit(
        train_x, train_y, batch_size=batch_size, epochs=epochs, callbacks=callbacks
    )
    plain = tfmot.sparsity.keras.strip_pruning(pruned)

    plain.compile("adam", loss, metrics=["accuracy"])
    for name, each in (("dense", model), ("sparse", plain)):
        kept = tfprune.read_masks(tfprune.Graph(each, unit="weight")).density()
        accuracy = each.evaluate(test_x, test_y, verbose=0)[1]
        print(f"{name}: {kept:.0%} of the weights, accuracy {accuracy:.2%}")
    return model, plain


if __name__ == "__main__":
    main()
