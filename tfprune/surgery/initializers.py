"""What draws the weights of copies, should they be drawn again."""

import keras
import numpy as np

from tfprune.graph.remaking import like_values


def initializers_of(layer) -> dict:
    """Returns the initializers that a layer holds under their argument's name."""
    return {k: v for k, v in vars(layer).items() if k.endswith("_initializer")}


def fresh_initializers(layer, config: dict) -> dict:
    """Returns copies of a layer's initializers, which draw other numbers.

    Layers that keep theirs elsewhere are drawn by what their config says.
    """
    own = {k: v for k, v in initializers_of(layer).items() if k in config}
    is_one = keras.initializers.Initializer
    return {k: v.clone() if isinstance(v, is_one) else v for k, v in own.items()}


def copy_initializers(old, new) -> None:
    """Gives a built copy, made without them, the initializers of its layer."""
    own = initializers_of(new)
    for name, initializer in initializers_of(old).items():
        if name in own:
            attribute = name.removesuffix("_initializer")
            variable = vars(new).get(attribute, vars(new).get(f"_{attribute}"))
            vars(new)[name] = fitting(initializer, getattr(variable, "shape", None))


def fitting(initializer, shape):
    """Returns an initializer for a variable of a shape, which may be smaller now.

    An array of another shape gives way to numbers of the same mean and deviation.

    Args:
        initializer: the initializer.
        shape: the shape of the variable; None if it is not known.
    """
    if not isinstance(initializer, keras.initializers.Constant) or shape is None:
        return initializer
    values = np.asarray(initializer.value)
    fits = not values.ndim or values.shape == tuple(shape)
    return initializer if fits else like_values(values)
