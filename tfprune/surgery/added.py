"""What is set on variables: copied and, where tfprune has set it, taken off again."""

import warnings

import keras

from tfprune.constraints import Clip, ZeroSlices
from tfprune.graph.nodes import flatten_layers
from tfprune.layers.weight_mask import holder_of
from tfprune.regularizers import Beside, Share

# And where each keeps what the layer had before.
_ADDED = {
    ZeroSlices: "constraint",
    Clip: "constraint",
    Share: "regularizer",
    Beside: "regularizer",
}


def copy_terms(layer, pairs) -> None:
    """Gives variables the regularizers and constraints set on those of a layer.

    Of what the layer was made with, its copy has objects of its own.

    Args:
        layer: the layer. What a gate has itself is in its config.
        pairs: each of its variables and that of the copy.
    """
    if not isinstance(layer, keras.layers.Layer):
        return
    parts = flatten_layers(layer)
    held = {id(value) for part in parts for value in vars(part).values()}
    own = {id(variable) for variable in parts[0].variables}
    for source, target in pairs:
        if id(source) not in own:
            continue
        for kind, one, other in (
            ("regularizer", source, target),
            ("constraint", holder_of(source), holder_of(target)),
        ):
            term = getattr(one, kind)
            if term is not None and id(term) in held:
                continue
            if term is None or source.shape == target.shape or _takes(term, target):
                setattr(other, kind, term)
            else:
                warnings.warn(
                    f"The {kind} set on {source.path!r} is left off in the copy: it "
                    f"is made for the shape {tuple(source.shape)} and cannot be used on "
                    f"{tuple(target.shape)}. Set one that can.",
                    stacklevel=2,
                )


def _takes(term, variable) -> bool:
    """Returns whether a regularizer or constraint can be used on a variable."""
    try:
        made = term(keras.ops.zeros(variable.shape, variable.dtype))
    except Exception:
        # Whatever somebody's function says to a shape that it was not made for.
        return False
    return tuple(made.shape) in ((), tuple(variable.shape))


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
