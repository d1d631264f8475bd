"""From the scores of layers to the scores of groups."""

from collections.abc import Callable

import keras
import numpy as np

from tfprune.graph import Graph
from tfprune.graph.gates import Member, gated_members

_REDUCTIONS = ("sum", "mean")


def check_reduction(reduction: str) -> str:
    """Returns `reduction` if it is one of "sum" and "mean"."""
    if reduction not in _REDUCTIONS:
        raise ValueError(
            '`reduction` must be "sum" or "mean": how the scores of a group\'s layers '
            f"make one. Received: reduction={reduction!r}"
        )
    return reduction


def members_of(graph: Graph) -> list[Member]:
    """Returns the layers on whose outputs units are scored.

    Those with a gate, or that would get one; for units without, such as the cells of
    recurrent layers, the layer that makes them.
    """
    members = gated_members(graph)
    covered = _count(graph, members) > 0
    own = {}
    for binding in graph.bindings:
        if not binding.read:
            own.setdefault(binding.path, []).append(binding.labels)
    known = {member.path for member in members}
    for call in graph.calls:
        if call.path in known or not isinstance(call.operation, keras.layers.Layer):
            continue
        out = call.outputs[0] if len(call.outputs) == 1 else None
        if out is None or out.channel_axis is None or call.path not in own:
            continue
        labels = out.labels[out.channel_axis]
        made = np.unique(graph.units(np.concatenate(own[call.path])))
        bare = np.isin(graph.units(labels), made) & ~covered[graph.units(labels)]
        if bare.any():
            known.add(call.path)
            members.append(Member(call.path, call.operation, labels, out.channel_axis))
    return members


def scores_by_group(
    graph: Graph, members: list[Member], score_of: Callable, reduction: str
) -> dict[str, np.ndarray]:
    """Returns `{group name: float32 scores}`: the members' scores, summed or averaged.

    Args:
        graph: the `Graph`.
        members: layers with units on their outputs.
        score_of: function from a member to one score per output channel.
        reduction: `"sum"` or `"mean"`.
    """
    total = np.zeros(graph.num_units + 1)
    for member in members:
        np.add.at(total, graph.units(member.labels), score_of(member))
    counts = _count(graph, members)
    if reduction == "mean":
        total /= np.maximum(counts, 1)
    # Nothing is known of units that no member carries. They stay, but for those that
    # no weight makes, such as channels of padding.
    total[(counts == 0) & _made_by_weights(graph)] = np.inf
    groups = graph.masks_of(total)
    return {name: scores.astype(np.float32) for name, scores in groups.items()}


def _count(graph: Graph, members: list[Member]) -> np.ndarray:
    """Returns how many members' channels each unit has."""
    counts = np.zeros(graph.num_units + 1, np.int64)
    for member in members:
        np.add.at(counts, graph.units(member.labels), 1)
    return counts


def _made_by_weights(graph: Graph) -> np.ndarray:
    made = np.zeros(graph.num_units + 1, bool)
    for binding in graph.bindings:
        if not binding.read:
            made[graph.units(binding.labels)] = True
    return made
