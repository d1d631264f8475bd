"""Cuts: masks from scores and thresholds, without a budget."""

from collections.abc import Mapping

import numpy as np

from tfprune import thresholds
from tfprune.graph import Graph
from tfprune.masks import Masks


def select_above(graph: Graph, scores: Mapping, threshold: float) -> Masks:
    """Keeps the units with scores above a threshold, and the best of each group.

    Args:
        graph: the `Graph`.
        scores: `{group name: scores}`.
        threshold: float.
    """
    masks = {}
    for group in graph.groups:
        score = scores[group.name]
        masks[group.name] = (score > threshold) | (
            np.arange(group.size) == score.argmax()
        )
    return Masks(masks)


def select_by_rule(graph: Graph, layers: Mapping, rule) -> Masks:
    """Keeps the units that lie above the threshold of one of their layers.

    Args:
        graph: the `Graph`.
        layers: `{layer path: (units, scores)}`. Units in none of them stay.
        rule: name or callable of `tfprune.thresholds`.
    """
    for path, (_, each) in layers.items():
        if np.isnan(each).any():
            raise ValueError(
                f"The scores of {path!r} are not numbers. Look for NaN weights there."
            )
    finite = {path: each[np.isfinite(each)] for path, (_, each) in layers.items()}
    # A layer of which everything is to stay needs no threshold, and tells of none.
    scores = {path: each for path, each in finite.items() if len(each)}
    found = thresholds.get(rule)(scores)
    for path in scores:
        if path not in found:
            raise ValueError(f"The threshold rule gave none for layer {path!r}.")
        if not np.isfinite(found[path]):
            raise ValueError(
                "A threshold rule must give a finite number for every layer. Received: "
                f"{found[path]} for layer {path!r}; -1.0 keeps all of a layer."
            )
    above = np.full(graph.num_units + 1, -np.inf)
    for path, (units, each) in layers.items():
        np.maximum.at(above, units, each.astype(np.float64) - found.get(path, 0.0))
    above[np.isneginf(above)] = np.inf
    masks = {}
    for group, units in zip(graph.groups, graph.members, strict=True):
        own = above[units]
        masks[group.name] = (own > 0) | (np.arange(group.size) == own.argmax())
    return Masks(masks)
