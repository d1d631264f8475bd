"""Regularizers: what makes channels unimportant while a model trains.

Those over scales see the scales of all layers at once, so they go into a model with
`tfprune.regularize`, not with the `gamma_regularizer` of a layer.
"""

from tfprune.regularizers.hoyer import GroupHoyerSquare, HoyerSquare
from tfprune.regularizers.network_slimming import NetworkSlimming
from tfprune.regularizers.over_scales import OverScales
from tfprune.regularizers.polarization import Polarization
from tfprune.regularizers.push import push, strength_for_push
from tfprune.regularizers.shared import Beside, Share, SharedTerm

__all__ = [
    "Beside",
    "GroupHoyerSquare",
    "HoyerSquare",
    "NetworkSlimming",
    "OverScales",
    "Polarization",
    "Share",
    "SharedTerm",
    "push",
    "strength_for_push",
]
