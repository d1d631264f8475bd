"""Reading a model: labels on every channel, groups of what is coupled."""

from tfprune.graph import (  # noqa: F401
    rules_attention,
    rules_gates,
    rules_layers,
    rules_ops,
    rules_own,
    rules_runtime,
    rules_sequence,
    rules_shapes,
)
from tfprune.graph.graph import Graph, as_graph
from tfprune.graph.group import Group, Slice
from tfprune.graph.registry import register_rule
from tfprune.graph.weights import WeightGraph

# The rule modules fill the registry when they are imported.
__all__ = ["Graph", "Group", "Slice", "WeightGraph", "as_graph", "register_rule"]
