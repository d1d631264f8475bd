"""Arrays and raw variables that stand in the calls of a model, as in `x * variable`.

Keras takes them for constants: it neither trains nor counts them, and saves their value.
"""

from collections.abc import Callable, Mapping

import keras
import numpy as np

from tfprune.graph.nodes import tree


def is_literal(x) -> bool:
    """Returns whether `x` is an array, a tensor with a value, or a variable."""
    # Keras takes a while to say what is no tensor, and all tensors have a type.
    if isinstance(x, keras.KerasTensor) or getattr(x, "dtype", None) is None:
        return False
    return isinstance(x, (np.ndarray, keras.Variable)) or keras.ops.is_tensor(x)


def is_variable(x) -> bool:
    """Returns whether `x` is a literal that can be told apart and read."""
    return is_literal(x) and not isinstance(x, np.ndarray)


def values_of(x) -> np.ndarray:
    """Returns the value of a literal; what is none stays as it is."""
    return keras.ops.convert_to_numpy(x) if is_literal(x) else x


def with_value(x, value: np.ndarray):
    """Returns a new literal of the kind of `x`."""
    if isinstance(x, keras.Variable):
        return keras.Variable(value, dtype=x.dtype, trainable=x.trainable)
    is_array = isinstance(x, np.ndarray)
    return value if is_array else keras.ops.convert_to_tensor(value, x.dtype)


def with_literals(args, kwargs, literal_for: Callable):
    """Returns `(args, kwargs)` of a call with other literals.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        literal_for: function from a literal to what takes its place.
    """
    return tree.map_structure(
        lambda x: literal_for(x) if is_literal(x) else x, (args, kwargs)
    )


def rewriter(values: Mapping) -> Callable:
    """Returns the rewriting of calls that puts new values in the place of literals.

    What is used in several calls stays one variable.

    Args:
        values: `{id(literal): array}`; all others stay.
    """
    if not values:
        return lambda args, kwargs: (args, kwargs)
    made = {}

    def literal_for(x):
        if id(x) in values and id(x) not in made:
            made[id(x)] = with_value(x, values[id(x)])
        return made.get(id(x), x)

    return lambda args, kwargs: with_literals(args, kwargs, literal_for)


def narrowed(x, labels, kept: Callable):
    """Returns a literal without what goes, itself if all of it stays.

    Args:
        x: literal that is broadcast to a tensor.
        labels: labels on the axes of that tensor.
        kept: function `labels -> bool array` of what stays.
    """
    value, changed = values_of(x), False
    for axis in range(-min(value.ndim, len(labels)), 0):
        each = labels[axis]
        if each is not None and value.shape[axis] == len(each) and not kept(each).all():
            value, changed = value.compress(kept(each), axis), True
    return with_value(x, value) if changed else x
