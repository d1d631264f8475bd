"""Which channels are exactly zero, whatever the input, and which units are dead."""

import numpy as np

from tfprune.graph.graph import Graph


def propagate_zeros(graph: Graph, closed: dict | None = None) -> dict[int, np.ndarray]:
    """Follows zeros through the model.

    Args:
        graph: the graph of the model.
        closed: `{id(call): bool array}`: channels to take as zero behind these calls,
            any of them and not all at once: what a contraction makes of them is then
            not taken as zero.

    Returns:
        `{id(tensor): bool array}` over the channel axis of every tensor of which
        something is known.
    """
    known: dict[int, np.ndarray] = {}
    for call in graph.calls:
        if len(call.outputs) != 1 or len(call.outputs[0].labeled_axes) != 1:
            continue
        zeros = None
        if call.zeros is not None and not (closed is not None and call.reads):
            zeros = call.zeros(*(known.get(id(x)) for x in call.inputs))
        if closed is not None and id(call) in closed:
            forced = closed[id(call)]
            zeros = forced if zeros is None else zeros | forced
        if zeros is not None:
            known[id(call.outputs[0])] = zeros
    return known


def exposed(graph: Graph, read, zeros: dict) -> np.ndarray:
    """Returns which channels of a read tensor reach the kernel as more than zero."""
    x = read.x
    prunable = graph.units(x.labels[read.x_axis]) < graph.num_units
    known = zeros.get(id(x)) if x.channel_axis == read.x_axis else None
    return prunable if known is None else prunable & ~known


def dead_units(graph: Graph) -> np.ndarray:
    """Returns per unit whether no reader gets anything but exact zeros from it.

    Removing such units changes no output. A reader gets zero where the channel is
    zero, where its kernel rows are, or where its input gate is closed.
    """
    zeros = propagate_zeros(graph)
    alive = np.zeros(graph.num_units + 1, bool)
    for call in graph.calls:
        for read in call.reads:
            labels = read.x.labels[read.x_axis]
            # A grouped kernel reads every group of channels with the same rows.
            used = np.resize(_used_rows(read), len(labels)) & exposed(
                graph, read, zeros
            )
            alive[graph.units(labels)[used]] = True
    return ~alive[:-1]


def _used_rows(read) -> np.ndarray:
    rows = np.moveaxis(read.variable.numpy() != 0, read.axis, 0)
    used = rows.reshape(len(rows), -1).any(axis=1)
    return used if read.closed is None else used & ~read.closed()
