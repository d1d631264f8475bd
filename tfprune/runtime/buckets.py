"""A narrow model for every width there is, and one of them is run."""

import keras
import numpy as np

from tfprune.graph import Graph
from tfprune.layers.one_image import Buckets
from tfprune.layers.runtime_choice import RuntimeChoice
from tfprune.runtime.gates import gates_of
from tfprune.surgery.compact import compact
from tfprune.surgery.rebuild import copy_model
from tfprune.surgery.runtime import without_runtime_gates


def bucketed(model) -> keras.Model:
    """Returns a model that runs, of several narrow models, the one an image needs.

    What comes before the decision is run once, unless something goes past it.

    Args:
        model: model with gates of one policy that chooses groups for a whole network,
            looking at what its first convolution makes.
    """
    gates = gates_of(model)
    first = gates[0]
    ratios = [
        (number + 1) / first.policy.groups for number in range(first.policy.groups)
    ]
    plain = without_runtime_gates(model)
    graph = Graph(plain)
    models = [compact(graph, _masks(gates, graph, ratio)) for ratio in ratios]
    choice = RuntimeChoice.of(first).numbered()
    looked_at = plain.get_layer(first.name).input
    source = copy_model(keras.Model(plain.input, looked_at))
    try:
        behind = [
            copy_model(keras.Model(each.get_layer(first.name).output, each.output))
            for each in models
        ]
    except ValueError:
        outputs = Buckets(choice, models, name="buckets")(source.output, source.input)
        return keras.Model(source.input, outputs, name=model.name)
    channels = [_first_of(first, ratio).tolist() for ratio in ratios]
    outputs = Buckets(choice, behind, channels, name="buckets")(source.output)
    return keras.Model(source.input, outputs, name=model.name)


def _first_of(gate, ratio: float) -> np.ndarray:
    """Returns the channels that a gate keeps at a ratio."""
    count = int(gate.count(np.float32([ratio]))[0]) * gate.block
    return np.flatnonzero(gate.ranks() < count)


def _masks(gates, graph: Graph, ratio: float) -> dict:
    """Returns the masks of the channels that gates keep at a ratio."""
    keep = np.ones(graph.num_units + 1, bool)
    gates = {gate.name: gate for gate in gates}
    for call in graph.calls:
        gate = gates.get(call.path)
        if gate is not None:
            units = graph.units(call.outputs[0].labels[-1])
            keep[np.delete(units, _first_of(gate, ratio))] = False
    return graph.masks_of(keep)
