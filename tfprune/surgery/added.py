"""What tfprune sets on layers, and how it comes off again."""

import keras

from tfprune.constraints import Clip, ZeroSlices
from tfprune.graph.nodes import flatten_layers
from tfprune.regularizers import Beside, Share

# And where each keeps what the layer had before.
_ADDED = {
    ZeroSlices: "constraint",
    Clip: "constraint",
    Share: "regularizer",
    Beside: "regularizer",
}


def leave_off_added(layer) -> None:
    """Takes constraints and regularizers that tfprune has set off a built copy.

    Args:
        layer: the copy, or an operation, which has none.
    """
    if not isinstance(layer, keras.layers.Layer):
        return
    for variable in layer.variables:
        variable.constraint = _own(variable.constraint)
        variable.regularizer = _own(variable.regularizer)
    for part in flatten_layers(layer):
        for name, value in list(vars(part).items()):
            if type(value) in _ADDED:
                # What gets saved.
                setattr(part, name, _own(value))


def _own(term):
    """Returns what a layer had before tfprune set a constraint or regularizer."""
    while type(term) in _ADDED:
        term = getattr(term, _ADDED[type(term)])
    return term
