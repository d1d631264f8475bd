"""Gate Decorator with Tick-Tock: a network for scikit-learn's digits loses 60 %."""

import keras
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tfprune


def build(width):
    layers = keras.layers
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(width, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    for _ in range(3):
        y = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(y))
        y = layers.Conv2D(width, 3, padding="same", use_bias=False)(y)
        x = layers.ReLU()(layers.Add()([x, layers.BatchNormalization(momentum=0.9)(y)]))
    x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x)


def compiled(model, learning_rate):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(learning_rate, momentum=0.9)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def main(width=32, epochs=12):
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=450, stratify=labels, random_state=0
    )
    train = tf.data.Dataset.from_tensor_slices((train_x, train_y))
    train = train.shuffle(2000, seed=0).batch(64)
    model = compiled(build(width), 0.01)
    model.fit(train, epochs=epochs)

    gated = compiled(tfprune.prune_wrap(model), 1e-3)
    budget = tfprune.Budget(flops_reduction=0.6, max_sparsity=0.9)
    tick_tock = tfprune.callbacks.TickTock(train, budget, cycle=(5, 1))
    gated.fit(train, epochs=epochs, callbacks=[tick_tock])
    small = compiled(tfprune.compact(gated), 2e-3)
    small.fit(train, epochs=epochs // 2)

    for name, each in (("dense", model), ("small", small)):
        accuracy = each.evaluate(test_x, test_y, verbose=0)[1]
        print(f"{name}: {tfprune.cost(each).macs:,} MACs, accuracy {accuracy:.2%}")
    return model, small


if __name__ == "__main__":
    main()
