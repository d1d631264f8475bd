"""Gates: masks that live inside a model."""

from tfprune.layers.channel_gate import GATED_TYPES, ChannelGate, ChannelMask
from tfprune.layers.swapping import SwapWrapper

__all__ = ["GATED_TYPES", "ChannelGate", "ChannelMask", "SwapWrapper"]
