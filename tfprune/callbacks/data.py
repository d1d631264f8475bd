"""The data that callbacks are given for themselves."""

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
