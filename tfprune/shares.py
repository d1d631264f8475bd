"""Removing a share of what is left, the pruning step of Tick-Tock."""

import numpy as np

from tfprune.budget import Budget, most_removed
from tfprune.graph import Graph
from tfprune.masks import Masks


def remove_share(
    graph: Graph,
    masks: Masks,
    scores: dict,
    counts: dict,
    share: float | int,
    budget: Budget,
) -> Masks:
    """Returns masks that keep less: the weakest share of the filters left goes.

    A unit with `count` layers in its group stands for that many filters, in what is
    left and in what goes. All units that score as low as the last one go with it, and
    those that score exactly 0, which are dead, go for free. In every group the best
    units stay as far as the budget's floors want it.

    Args:
        graph: the `Graph`.
        masks: masks in force; what they remove stays removed.
        scores: `{group name: scores}`; `inf` keeps a unit.
        counts: `{group name: number of layers}` behind each unit's score.
        share: fraction of the filters left, or their number as an int.
        budget: `Budget` with the floors.

    Source: You et al., "Gate Decorator", 2019, section 3.2.
    """
    floors = {
        group.name: group.size - int(most)
        for group, most in zip(graph.groups, most_removed(graph, budget), strict=True)
    }
    number = share
    if isinstance(share, float):
        left = sum(counts[name][mask].sum() for name, mask in masks.items())
        number = int(share * left)
    safe = {
        name: _best(np.where(masks[name], scores[name], -1), floors[name])
        for name in masks
    }
    threshold = _threshold(scores, counts, safe, number)
    return Masks(
        {
            name: mask & (safe[name] | (scores[name] > threshold))
            for name, mask in masks.items()
        }
    )


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns which are the best `count`; of equal ones the last."""
    best = np.zeros(len(scores), bool)
    best[np.argsort(scores, kind="stable")[len(scores) - count :]] = True
    return best


def _threshold(scores: dict, counts: dict, safe: dict, number: int) -> float:
    """Returns the score of filter `number`, from 0, of those that may go."""
    pool = [
        np.repeat(scores[name][may_go], counts[name][may_go])
        for name in scores
        for may_go in [~safe[name] & (scores[name] != 0) & np.isfinite(scores[name])]
    ]
    pool = np.sort(np.concatenate([*pool, []]))
    if number < 0 or not len(pool):
        return 0.0
    return float(pool[min(number, len(pool) - 1)])
