"""Where runtime gates can go."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from keras import layers

from tfprune.graph.graph import Graph
from tfprune.graph.scales import normalized_directly, why_not_folded
from tfprune.layers.kernels import altered_kernel
from tfprune.patterns import matches


@dataclass(frozen=True, eq=False)
class RuntimePlace:
    """A convolution whose channels can be chosen image by image.

    Attributes:
        convolution: the call that makes the channels.
        normalization: the call of the BatchNormalization behind it, None without one.
    """

    convolution: object
    normalization: object

    @property
    def last(self):
        """The call whose output the gate takes in."""
        return self.normalization or self.convolution


def runtime_places(graph: Graph, patterns=None) -> tuple[list[RuntimePlace], dict]:
    """Returns the places in the order of the layers, and `{path: why not}` of others.

    Args:
        graph: `Graph` of a model without gates.
        patterns: path patterns of the convolutions to take; None for all.

    Raises:
        ValueError: if a pattern matches no convolution that can be gated.
    """
    pairs = normalized_directly(graph)
    normalizations = {id(made.operation): norm for made, norm in pairs}
    times = Counter(id(call.operation) for call in graph.calls)
    places, refused = [], {}
    for call in graph.calls:
        if type(call.layer) is not layers.Conv2D:
            continue
        if times[id(call.operation)] > 1:
            refused[call.path] = "it is called several times"
            continue
        norm = normalizations.get(id(call.operation))
        why = _why_not(graph, call, norm)
        if why is None:
            places.append(RuntimePlace(call, norm))
        else:
            refused[call.path] = why
    return _chosen(places, refused, patterns), refused


def _why_not(graph: Graph, call, norm) -> str | None:
    layer, labels = call.layer, call.outputs[0].labels[-1]
    if layer.groups > 1 or layer.data_format != "channels_last":
        return "only plain convolutions with channels last are pruned at run time"
    # A deployed model has nothing between a convolution and its gate.
    why = altered_kernel(layer) if norm is None else why_not_folded(layer, norm.layer)
    if why is not None:
        return why
    if labels is None or not graph.prunable(labels).all():
        return "its channels are kept"
    if "/" in call.path:
        return "it lies in a nested model"
    units = graph.units(labels)
    own = {call.path, norm.path} if norm is not None else {call.path}
    groups = [g for g in graph.groups if call.path in g.layers]
    shared = {path for group in groups for path in group.layers} - own
    if shared or len(np.unique(units)) < len(units):
        return (
            f"its channels are those of {sorted(shared)[:2]} too: prune them for good"
        )
    return None


def _chosen(places: list, refused: dict, patterns) -> list:
    if patterns is None:
        return places
    chosen = []
    for pattern in patterns:
        found = [p for p in places if matches(p.convolution.path, pattern)]
        if not found:
            why = {k: v for k, v in refused.items() if matches(k, pattern)}
            raise ValueError(
                f"`layers`: the path pattern {pattern!r} matches no convolution that "
                f"can be pruned at run time. {why or 'It matches no convolution.'}"
            )
        chosen += found
    return [place for place in places if place in chosen]
