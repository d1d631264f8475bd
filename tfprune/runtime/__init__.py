"""Channels chosen per image: the agents that say how many, and what they learn from."""

from tfprune.runtime.deploy import deploy

__all__ = ["deploy"]
