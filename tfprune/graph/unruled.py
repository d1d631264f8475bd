"""What is done with a layer: its rule is followed, it is taken apart, or tried out."""

from collections.abc import Callable

from tfprune.graph.nodes import recorded_arguments
from tfprune.graph.opening import Opened, open_call
from tfprune.graph.probing import by_narrowing, by_probing
from tfprune.graph.registry import find_rule


def follower_of(operation) -> Callable:
    """Returns the function that follows the calls of an operation."""
    rule = find_rule(operation)
    if rule is not None:
        return rule.trace
    return by_narrowing if getattr(operation, "variables", ()) else by_probing


def opened_call(node, others=()) -> Opened:
    """Returns the parts of the layer that a node calls, and other nodes as well.

    A layer with a rule stays whole: its rule knows more than its parts.
    """
    if find_rule(node.operation) is not None:
        return Opened(node, recorded_arguments(node))
    return open_call(node, others)
