"""MNIST, and what is measured on it."""

import loading
import numpy as np

BATCH = 256


def digits(data_dir, flat):
    """Returns `(train, test)` of MNIST, each images and labels."""

    def prepared(images, labels):
        images = (images / np.float32(255) - 0.1307) / 0.3081
        shape = (-1, 784) if flat else (-1, 28, 28, 1)
        return images.reshape(shape).astype("float32"), labels

    return tuple(prepared(*part) for part in loading.arrays("mnist", data_dir))


def batches(images, labels, seed):
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((images, labels))
    data = data.shuffle(len(images), seed=seed).batch(BATCH, drop_remainder=True)
    return data.prefetch(2)


def accuracy(model, data):
    """Returns the share of right answers, in percent."""
    parts = np.array_split(data[0], 10)
    scores = np.concatenate([np.asarray(model.predict_on_batch(x)) for x in parts])
    return 100 * float(np.mean(scores.argmax(-1) == data[1]))
