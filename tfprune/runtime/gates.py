"""Where the runtime gates of a model stand."""

import keras

from tfprune.graph.nodes import as_functional, nodes_in_order
from tfprune.layers import RuntimeGate


def gates_of(model) -> list[RuntimeGate]:
    """Returns the runtime gates of a model, in the order in which they decide."""
    found = (each for each in model.layers if isinstance(each, RuntimeGate))
    return sorted(found, key=lambda gate: gate.number)


def gated_nodes(model) -> list[tuple]:
    """Returns each gate's node, and those before it, from its input to a convolution.

    Args:
        model: Functional model, or the `Functional` behind one.
    """
    nodes = nodes_in_order(as_functional(model))
    made_by = {id(x): node for node in nodes for x in node.outputs}
    found = []
    for node in nodes:
        if isinstance(node.operation, RuntimeGate):
            before = [made_by[id(node.input_tensors[0])]]
            while not isinstance(before[-1].operation, keras.layers.Conv2D):
                before.append(made_by[id(before[-1].input_tensors[0])])
            found.append((node, before))
    return found
