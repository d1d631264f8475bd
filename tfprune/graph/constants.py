"""Which channels are constant, whatever the input, and which units are dead."""

import numpy as np
from keras import layers

from tfprune.graph.graph import Graph
from tfprune.graph.nodes import LayerScale
from tfprune.layers.kernels import DEPTHWISE


def propagate(graph: Graph, closed: dict | None = None) -> dict[int, np.ndarray]:
    """Follows constants through the model.

    Args:
        graph: the graph of the model.
        closed: `{id(call): bool array}`: channels to take as zero behind these calls,
            any of them and not all at once, and also when training has gone on: what
            a contraction or a layer with a shift makes of them is not taken as
            constant.

    Returns:
        `{id(tensor): vector}` over the channel axis of every tensor of which
        something is known: the value of each constant channel, NaN for the others.
    """
    known: dict[int, np.ndarray] = {}
    for call in graph.calls:
        labeled = [len(x.labeled_axes) for x in call.outputs]
        # Beside the first there may be a state, which has no channels.
        if labeled != [1] and labeled != [1, 0]:
            continue
        values = None
        if call.constants is not None and (closed is None or _keeps_zeros(call)):
            values = call.constants(*(known.get(id(x)) for x in call.inputs))
        if closed is not None and id(call) in closed:
            values = np.where(closed[id(call)], 0, np.nan if values is None else values)
        if values is not None and not np.isnan(values).all():
            known[id(call.outputs[0])] = values
    return known


# What they make of zero is known, whatever their weights become.
_FACTORS = (layers.PReLU, LayerScale, *DEPTHWISE)
# And whatever they draw in training.
_RANDOM_FACTORS = (layers.Dropout, layers.GaussianDropout)


def _keeps_zeros(call) -> bool:
    """Returns whether what a call makes of zeros is known for good.

    Any weight may be a shift, even one that is zero before it is trained, and so may
    random numbers, such as noise.
    """
    layer = call.layer
    if isinstance(layer, layers.TimeDistributed):
        layer = layer.layer
    if call.reads or getattr(layer, "bias", None) is not None:
        return False
    if isinstance(layer, (layers.Normalization, *_FACTORS, *_RANDOM_FACTORS)):
        return True
    # States of random numbers are among the variables, not the weights.
    return not getattr(layer, "variables", ())


def values_of(read, known: dict) -> np.ndarray:
    """Returns the constants of a read tensor along the axis that is read."""
    x = read.x
    values = known.get(id(x)) if x.channel_axis == read.x_axis else None
    return np.full(x.shape[read.x_axis], np.nan) if values is None else values


def exposed(graph: Graph, read, known: dict) -> np.ndarray:
    """Returns which channels of a read tensor reach the kernel as more than zero."""
    prunable = graph.prunable(read.x.labels[read.x_axis])
    return prunable & (values_of(read, known) != 0)


def dead_units(graph: Graph) -> np.ndarray:
    """Returns per unit whether no reader gets anything but exact zeros from it.

    Removing such units changes no output. A reader gets zero where the channel is
    zero, where its kernel rows are, or where its input gate is closed.
    """
    known = propagate(graph)
    alive = in_statistics(graph)
    for call in graph.calls:
        for read in call.reads:
            used = used_rows(read) & exposed(graph, read, known)
            alive[graph.units(read.x.labels[read.x_axis])[used]] = True
    return ~alive[:-1]


def in_statistics(graph: Graph) -> np.ndarray:
    """Returns per unit, and last for all that is kept, whether zeros of it count."""
    counts = np.zeros(graph.num_units + 1, bool)
    for call in graph.calls:
        if call.unequal:
            x = call.inputs[0]
            counts[graph.units(x.labels[x.channel_axis])] = True
    return counts


def used_rows(read) -> np.ndarray:
    """Returns which channels of a read tensor meet anything but zeros."""
    if read.variable is None:
        return np.ones(read.x.shape[read.x_axis], bool)
    rows = np.moveaxis(read.variable.numpy() != 0, read.axis, 0)
    used = rows.reshape(len(rows), -1).any(axis=1)
    if read.closed is not None:
        used &= ~read.closed()
    # A grouped kernel reads every group of channels with the same rows.
    return np.resize(used, read.x.shape[read.x_axis])
