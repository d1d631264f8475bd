"""Channels chosen per image: the agents that say how many, and what they learn from."""
