"""Gates: masks that live inside a model."""

from tfprune.layers.channel_gate import GATED_TYPES, ChannelGate, ChannelMask
from tfprune.layers.kernel_gate import KernelGate
from tfprune.layers.swapping import SwapWrapper
from tfprune.layers.trainable_mask import TrainableChannelMask, TrainableMask
from tfprune.layers.weight_mask import WeightMask

__all__ = [
    "GATED_TYPES",
    "ChannelGate",
    "ChannelMask",
    "KernelGate",
    "SwapWrapper",
    "TrainableChannelMask",
    "TrainableMask",
    "WeightMask",
]
