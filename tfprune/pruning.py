"""The ten-second door: score, choose and compact in one call."""

from collections.abc import Callable, Mapping

import keras
import numpy as np

from tfprune import importances
from tfprune.budget import Budget
from tfprune.graph import Graph, as_graph
from tfprune.selection import select
from tfprune.surgery import compact, has_gates, read_masks, strip


def prune(
    model: keras.Model | Graph,
    flops_reduction: float = 0.5,
    importance: str | Callable = "magnitude",
    scope: str | Mapping = "global",
    max_sparsity: float | Mapping | None = None,
    min_channels: int = 1,
    multiple_of: int = 1,
) -> keras.Model:
    """Returns a smaller model with at least this fraction of its FLOPs removed.

    One shot, without training: fine-tune the result. Channels that are dead already,
    such as those behind closed gates, go first. For other budgets and for
    pruning inside `fit` see `select`, `compact` and `callbacks.PruneToBudget`.

    Args:
        model: model, with or without gates, or the `Graph` of one; not changed.
        flops_reduction: fraction of multiply-accumulates to remove, in [0, 1).
        importance: name or callable, see `select`.
        scope: `"global"`, `"uniform"` or `{path pattern: fraction}`, see `select`.
        max_sparsity: largest fraction removed from any one group, or `{path pattern:
            fraction}`, see `Budget`.
        min_channels: channels that stay in every group.
        multiple_of: kept channels are rounded up to a multiple of this.

    Returns:
        A new plain Keras model, uncompiled, verified by `compact`.

    Raises:
        ValueError: if the budget cannot be met or the model cannot be traced.

    Example:

    ```python
    small = tfprune.prune(model, flops_reduction=0.5)
    small.compile("adam", "sparse_categorical_crossentropy")
    small.fit(x, y, epochs=10)
    ```
    """
    budget = Budget(
        flops_reduction=flops_reduction,
        max_sparsity=max_sparsity,
        min_channels=min_channels,
        multiple_of=multiple_of,
    )
    graph = as_graph(model)
    if has_gates(graph.model):
        graph = graph.of(strip(graph.model))
    scores = _dead_first(importances.get(importance)(graph), read_masks(graph))
    return compact(graph, select(graph, lambda graph: scores, budget, scope=scope))


def _dead_first(scores: Mapping, alive: Mapping) -> dict:
    """Returns scores with which channels go first that no reader gets anything from."""
    finite = (np.min(s, initial=0.0, where=np.isfinite(s)) for s in scores.values())
    lowest = min(finite, default=0.0)
    return {
        name: np.where(alive[name], each, lowest - 1) if name in alive else each
        for name, each in scores.items()
    }
