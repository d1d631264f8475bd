"""Gates: masks that live inside a model."""

from tfprune.layers.channel_gate import GATED_TYPES, ChannelGate, ChannelMask
from tfprune.layers.hard_concrete import HardConcrete
from tfprune.layers.kernel_gate import KernelGate
from tfprune.layers.runtime_gate import RuntimeGate
from tfprune.layers.runtime_policy import RuntimePolicy
from tfprune.layers.spliced_mask import SplicedMask
from tfprune.layers.swapping import SwapWrapper
from tfprune.layers.targeted_dropout import TargetedDropout
from tfprune.layers.trainable_mask import TrainableChannelMask, TrainableMask
from tfprune.layers.weight_mask import WeightMask

__all__ = [
    "GATED_TYPES",
    "ChannelGate",
    "ChannelMask",
    "HardConcrete",
    "KernelGate",
    "RuntimeGate",
    "RuntimePolicy",
    "SplicedMask",
    "SwapWrapper",
    "TargetedDropout",
    "TrainableChannelMask",
    "TrainableMask",
    "WeightMask",
]
