"""The data that callbacks are given for themselves."""

from collections.abc import Iterator

import keras
import tensorflow as tf

_MAKE = "Make one with `tf.data.Dataset.from_tensor_slices((x, y)).batch(128)`."


def check_batches(name: str, data) -> None:
    """Raises ValueError for what is no iterable of batches `(x, y)`, as arrays are not.

    Args:
        name: what the argument is called.
        data: what was given for it.
    """
    # A list of arrays may be one of batches without labels.
    is_pair = isinstance(data, tuple)
    is_arrays = hasattr(data, "shape") or (
        is_pair and not all(isinstance(batch, (tuple, list)) for batch in data)
    )
    is_indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if is_arrays or not (is_indexed or hasattr(data, "__iter__")):
        raise ValueError(
            f"`{name}` must be a dataset of batches `(x, y)`, not arrays. Received: "
            f"{_described(data)}. {_MAKE}"
        )


def check_pairs(name: str, batch) -> None:
    """Raises ValueError for a batch that is no `(x, y)`.

    Args:
        name: what the argument is called that the batch is of.
        batch: a batch, or the specification of one.
    """
    if not (isinstance(batch, (tuple, list)) and len(batch) >= 2):
        raise ValueError(
            f"`{name}` must have batches `(x, y)`. Received: one that is a "
            f"{_described(batch)}. {_MAKE}"
        )


def is_endless(data) -> bool:
    """Returns whether data have no end or, as generators, may have none."""
    if isinstance(data, tf.data.Dataset):
        return int(data.cardinality()) == tf.data.INFINITE_CARDINALITY
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches is None
    return isinstance(data, Iterator)


def num_batches(name: str, data, takes_py_dataset: bool = False) -> int:
    """Returns the number of batches in a dataset.

    Args:
        name: what the argument is called.
        data: what was given for it.
        takes_py_dataset: whether it may be a `keras.utils.PyDataset`.

    Raises:
        ValueError: if it is no dataset, or its length is not known or not finite.
    """
    number = None
    if isinstance(data, tf.data.Dataset):
        number = int(data.cardinality())
    elif takes_py_dataset:
        number = getattr(data, "num_batches", None)
    if number is not None and number > 0:
        return number
    either = " or a `keras.utils.PyDataset`" if takes_py_dataset else ""
    raise ValueError(
        f"`{name}` must be a batched `tf.data.Dataset`{either} of known, finite "
        f"length. Received: {_described(data)}. {_MAKE} One of unknown length gets it by "
        "`dataset.apply(tf.data.experimental.assert_cardinality(batches))`."
    )


def _described(data) -> str:
    kind = type(data).__name__
    return f"a {kind} of {len(data)}" if isinstance(data, (tuple, list)) else kind
