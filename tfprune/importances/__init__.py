"""Importances: one score per unit, higher = keep.

An importance is a callable `importance(graph) -> {group name: scores}`, scores being a
float array of shape `(group.size,)`; `inf` keeps a unit whatever the budget. One that
needs data also has `reset_state()` and `update_state(model, x, y, sample_weight)`.
"""

from collections.abc import Callable

from tfprune.importances.fisher import Fisher
from tfprune.importances.geometric_median import GeometricMedian
from tfprune.importances.lamp import LAMP
from tfprune.importances.lobs import LOBS
from tfprune.importances.magnitude import Magnitude
from tfprune.importances.molchanov import Molchanov
from tfprune.importances.random import Random
from tfprune.importances.scale import Scale
from tfprune.importances.taylor import Taylor
from tfprune.importances.weight_fisher import WeightFisher

__all__ = [
    "LAMP",
    "LOBS",
    "Fisher",
    "GeometricMedian",
    "Magnitude",
    "Molchanov",
    "Random",
    "Scale",
    "Taylor",
    "WeightFisher",
    "get",
]

_BY_NAME = {
    "fisher": Fisher,
    "geometric_median": GeometricMedian,
    "lamp": LAMP,
    "lobs": LOBS,
    "magnitude": Magnitude,
    "molchanov": Molchanov,
    "random": Random,
    "scale": Scale,
    "taylor": Taylor,
    "weight_fisher": WeightFisher,
}


# What scores single weights; the others read channels.
_OF_WEIGHTS = (LAMP, LOBS, Magnitude, Random, WeightFisher)


def get(importance: str | Callable, unit: str = "channel") -> Callable:
    """Returns an importance given by name or as a callable `importance(graph)`.

    Args:
        importance: name or callable.
        unit: what it is to score, as in `Graph`.
    """
    if isinstance(importance, str) and importance in _BY_NAME:
        importance = _BY_NAME[importance]()
    is_own = isinstance(importance, tuple(_BY_NAME.values()))
    of_weights = isinstance(importance, _OF_WEIGHTS)
    if is_own and unit == "weight" and not of_weights:
        raise ValueError(
            f"{type(importance).__name__} scores channels, not single weights. "
            f"Received: importance={importance!r} for a graph of weights. Those that "
            f"do are {[each.__name__ for each in _OF_WEIGHTS]}, and any callable."
        )
    if callable(importance) and not isinstance(importance, type):
        return importance
    raise ValueError(
        f"`importance` must be one of {sorted(_BY_NAME)} or a callable "
        f"`importance(graph) -> {{group name: scores}}`. Received: {importance!r}"
    )


def needs_data(importance) -> bool:
    """Returns whether an importance has to be shown data before it can score."""
    return callable(getattr(importance, "update_state", None))
