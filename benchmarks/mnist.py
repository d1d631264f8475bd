"""MNIST, networks trained on it, and the file that finished runs go to."""

import json
import sys
from pathlib import Path

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


class Results:
    """Finished runs, a line of JSON each.

    Args:
        path: the file.
    """

    def __init__(self, path):
        self._path = Path(path)
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def find(self, **keys):
        """Returns the run with these entries, None if there is none."""
        rows = (r for r in self.rows if all(r[k] == v for k, v in keys.items()))
        return next(rows, None)

    def add(self, row):
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), file=sys.stderr, flush=True)
