"""Channels chosen per image: deployed models, and what agents learn from."""

from tfprune.runtime.deploy import deploy
from tfprune.runtime.work import kept_channels, work

__all__ = ["deploy", "kept_channels", "work"]
