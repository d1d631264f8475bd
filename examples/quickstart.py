"""Ten lines: train a network on real images, halve its FLOPs, train on, export it."""

import keras
from sklearn.datasets import load_digits

import tfprune


def main(epochs=5, path="small"):
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1) / 16
    convolutions = [keras.layers.Conv2D(64, 3, activation="relu") for _ in range(3)]
    head = [keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential([keras.Input((8, 8, 1)), *convolutions, *head])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, labels, epochs=epochs)

    small = tfprune.prune(model, flops_reduction=0.5)
    small.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    small.fit(images, labels, epochs=epochs)
    print(tfprune.benchmark({"dense": model, "pruned": small}, batch_size=64))
    tfprune.export(small, path, overwrite=True)
    return model, small


if __name__ == "__main__":
    main()
