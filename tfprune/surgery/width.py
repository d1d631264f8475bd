"""The same network, narrower, with new weights."""

import keras
import numpy as np

from tfprune.checks import check_integer, check_number
from tfprune.costs import cost
from tfprune.graph import Graph, as_graph
from tfprune.surgery.compact import compact_unverified
from tfprune.surgery.gates import has_gates
from tfprune.surgery.rebuild import with_new_weights


def scale_width(
    model: keras.Model | Graph, width: float, multiple_of: int = 1
) -> keras.Model:
    """Returns the model with a fraction of the channels everywhere, untrained.

    Uniform channel scaling: what a pruned model has to beat when it is trained from
    scratch for as long. FLOPs go with about the square of the width. Weights are new,
    from the layers' own initializers; layers without trainable weights, such as
    `Normalization`, keep their state.

    Args:
        model: Functional, Sequential or subclassed model without gates, or its
            `Graph`; not changed.
        width: float in (0, 1]: fraction of the channels of every group that stay,
            rounded, at least one.
        multiple_of: int: numbers of channels are rounded to multiples of this, up if
            more than a tenth would be lost.

    Returns:
        A new model, uncompiled.

    Raises:
        ValueError: if an argument is out of range or the model has gates.

    Source: the multiplier of Howard et al., "MobileNets", 2017, section 3.3.

    Example:

    >>> narrow = tfprune.scale_width(keras.applications.ResNet50(weights=None), 0.7)
    """
    check_number("width", width, "(0, 1]", "the fraction of the channels that stay")
    check_integer("multiple_of", multiple_of, 1)
    graph = as_graph(model)
    if has_gates(graph.model):
        raise ValueError(
            f"Model {graph.model.name!r} has gates. Call `tfprune.strip` first."
        )
    masks = _narrow(graph, width, multiple_of)
    return with_new_weights(compact_unverified(graph, masks))


def width_for(
    model: keras.Model | Graph, flops_reduction: float, multiple_of: int = 1
) -> float:
    """Returns the largest width with which `scale_width` removes enough FLOPs.

    Args:
        model: Functional, Sequential or subclassed model without gates, or its
            `Graph`.
        flops_reduction: float in [0, 1): fraction to remove.
        multiple_of: int: as `scale_width` will be given.

    Returns:
        Float in (0, 1].

    Raises:
        ValueError: if an argument is out of range, or even one channel everywhere
            leaves more.

    Example:

    >>> narrow = tfprune.scale_width(model, tfprune.width_for(model, 0.5))
    """
    check_number("flops_reduction", flops_reduction, "[0, 1)", "the fraction to remove")
    check_integer("multiple_of", multiple_of, 1)
    graph = as_graph(model)
    most = (1 - flops_reduction) * cost(graph).macs

    def is_enough(width: float) -> bool:
        return cost(graph, _narrow(graph, width, multiple_of)).macs <= most

    low, high = 1e-9, 1.0
    if not is_enough(low):
        least = cost(graph, _narrow(graph, low, multiple_of)).macs / cost(graph).macs
        raise ValueError(
            "`flops_reduction` must be one that narrower layers can meet: at most "
            f"{1 - least:.3g} here. Received: flops_reduction={flops_reduction!r} and "
            f"multiple_of={multiple_of!r} for {graph.model.name!r}. Lower either."
        )
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if is_enough(middle) else (low, middle)
    return low


def _narrow(graph: Graph, width: float, multiple_of: int) -> dict:
    return {
        group.name: np.arange(group.size) < _kept(group.size, width, multiple_of)
        for group in graph.groups
    }


def _kept(size: int, width: float, multiple_of: int) -> int:
    wanted = size * width
    kept = max(multiple_of, round(wanted / multiple_of) * multiple_of)
    if kept < 0.9 * wanted:
        kept += multiple_of
    return min(size, kept)
