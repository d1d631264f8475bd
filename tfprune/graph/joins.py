"""Sums whose parts lose channels of their own: `Graph(residual="independent")`."""

import keras
import numpy as np
from keras import ops

from tfprune.graph.call import Call, Tensor
from tfprune.graph.flows import constants_of, keeps_zero, only_zeros
from tfprune.graph.following import is_symbolic
from tfprune.graph.nodes import flatten_layers, tree
from tfprune.layers.kernels import is_kernel


def is_join(call: Call, operands) -> bool:
    """Whether a sum is of branches that are to be pruned independently."""
    if call.trace.residual != "independent" or len(operands) < 2:
        return False
    if not all(isinstance(each, Tensor) for each in operands):
        return False
    out = call.outputs[0]
    axes = {each.channel_axis for each in operands if each.channel_axis is not None}
    if len(axes) != 1 or any(len(each.labeled_axes) > 1 for each in operands):
        return False
    (axis,) = axes
    same_rank = all(len(each.shape) == len(out.shape) for each in operands)
    return same_rank and all(each.shape[axis] == out.shape[axis] for each in operands)


def join(call: Call, operands, function) -> Tensor:
    """States that a sum keeps its width, whatever its parts lose.

    Args:
        call: the call.
        operands: the `Tensor`s that are added.
        function: their sum, as a function of arrays.
    """
    out = call.outputs[0]
    labeled = [each for each in operands if each.channel_axis is not None]
    axis = labeled[0].channel_axis
    made_by = {id(x): other for other in call.trace.calls for x in other.outputs}
    for each in labeled:
        call.use(each, axis)
        values = _when_masked(each, made_by)
        stays = np.ones(out.shape[axis], bool) if values is None else values != 0
        reason = f"added up in {call.path!r}, where masking it may not leave 0"
        call.lock(each.labels[axis][stays], reason)
    made = call.new_labels(out.shape[axis])
    call.lock(made, "a sum of branches that are pruned on their own (`residual=`)")
    result = Tensor(out.shape).with_labels({axis: made})
    call.constants = constants_of(function, operands, result)

    def spread(kept):
        return lambda x, old: _spread(x, _stays(old, axis, kept), axis)

    call.arguments = lambda kept, args, kwargs: _map_tensors(
        spread(kept), args, kwargs, operands
    )
    return result


def _when_masked(x: Tensor, made_by: dict):
    """Returns what channels are once they are masked; NaN or None where unknown.

    Args:
        x: the tensor.
        made_by: `{id(tensor): call}` of all calls so far.
    """
    call = made_by.get(id(x))
    if call is None or call.unequal or x.channel_axis is None:
        return None
    weights = _weights_along(call, x.labels[x.channel_axis])
    is_first = not any(each.labeled_axes for each in call.inputs)
    if is_first or any(is_kernel(each) or each.name == "gamma" for each in weights):
        # Weights made the channels, or all that comes in is multiplied by some.
        zeros = np.zeros(x.shape[x.channel_axis])
        return zeros if all(map(keeps_zero, _activations(call.layer))) else None
    known = [_when_masked(each, made_by) for each in call.inputs]
    if weights:
        # All of them are zero, not what they are now.
        return only_zeros(known[0]) if len(known) == 1 else None
    return None if call.constants is None else call.constants(*known)


def _weights_along(call: Call, labels) -> list:
    """Returns the weights of a layer that have an axis with some of these channels."""
    root = call.trace.atoms.root
    found = []
    for variable in getattr(call.layer, "weights", ()):
        axes = [call.trace.labels_of(variable, i) for i in range(len(variable.shape))]
        own = [each for each in axes if each is not None]
        if any(np.isin(root(each), root(labels)).any() for each in own):
            found.append(variable)
    return found


def _activations(layer) -> list:
    parts = flatten_layers(layer) if isinstance(layer, keras.layers.Layer) else ()
    own = [vars(part).get("activation") for part in parts]
    return [each for each in own if each is not None]


def _map_tensors(function, args, kwargs, operands):
    """Returns a call's arguments with a function run on each tensor in them."""
    old = iter(operands)
    return tree.map_structure(
        lambda x: function(x, next(old)) if is_symbolic(x) else x, (args, kwargs)
    )


def _stays(tensor: Tensor, axis: int, kept) -> np.ndarray:
    labels = tensor.labels[axis]
    return np.ones(tensor.shape[axis], bool) if labels is None else kept(labels)


def _spread(x, stays: np.ndarray, axis: int):
    """Puts the channels of a tensor in their old places, zeros between them."""
    if stays.all():
        return x
    places = np.flatnonzero(stays)
    before, after = int(places[0]), int(len(stays) - 1 - places[-1])
    widths = [(0, 0)] * len(x.shape)
    if len(places) == places[-1] - places[0] + 1:
        widths[axis] = before, after
        return ops.pad(x, widths)
    # One channel of zeros behind the others, picked for whatever is missing. Whole
    # channels are picked two to three times as fast as single entries of them.
    order = [axis, *(other for other in range(len(x.shape)) if other != axis)]
    x = ops.pad(ops.transpose(x, order), [(0, 1), *[(0, 0)] * (len(x.shape) - 1)])
    index = np.where(stays, np.cumsum(stays) - 1, len(places))
    x = ops.take(x, index.tolist(), axis=0)
    return ops.transpose(x, np.argsort(order).tolist())


def scattered(graph, keep) -> int:
    """Returns how many entries per sample are written to put zeros between channels.

    Args:
        graph: the `Graph`.
        keep: bool array per unit, as of `Graph.keep`.
    """
    return sum(
        int(np.prod(read.x.shape[1:], dtype=np.int64))
        for call in graph.calls
        for read in call.reads
        if read.variable is None and not keep[graph.units(read.labels)].all()
    )
