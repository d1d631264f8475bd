"""Reading weights without copying them."""

import numpy as np
import tensorflow as tf


def shared_array(variable) -> np.ndarray:
    """Returns the value of a variable or tensor, in the memory that holds it.

    For reading only. It stays what it is when a variable is assigned another value.
    """
    # Layers may be built while TensorFlow follows a function, where nothing has a value.
    with tf.init_scope():
        return np.asarray(tf.convert_to_tensor(getattr(variable, "value", variable)))
