"""Data sets of TensorFlow Datasets as arrays, for benchmarks."""


def arrays(name, data_dir):
    """Returns `((images, labels) to train on, (images, labels) to test)`.

    Args:
        name: name of the data set.
        data_dir: a directory of TensorFlow Datasets; None downloads.
    """
    import tensorflow_datasets as tfds

    return tfds.as_numpy(
        tfds.load(
            name,
            split=["train", "test"],
            data_dir=data_dir,
            download=data_dir is None,
            batch_size=-1,
            as_supervised=True,
        )
    )
