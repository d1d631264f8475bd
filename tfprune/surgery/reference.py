"""What a compacted model has to compute where zeros would not do."""

from collections.abc import Mapping

import keras
import numpy as np

from tfprune.graph import Graph
from tfprune.graph.literals import rewriter
from tfprune.graph.registry import settings_of
from tfprune.surgery.rebuild import Rebuilder, copy_operation_like, copy_state


class _OnKept(keras.layers.Layer):
    """Runs a layer on the channels that stay; the others come out as zeros."""

    def __init__(self, layer, keep: np.ndarray, axis: int):
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        self.layer = layer
        self.axis = axis
        self.kept = np.flatnonzero(keep)
        # The zeros are put behind the channels that stay.
        self.places = np.where(keep, np.cumsum(keep) - 1, len(self.kept))

    def build(self, shape):
        narrow = list(shape)
        narrow[self.axis] = len(self.kept)
        self.layer.build(tuple(narrow))

    def call(self, x):
        y = self.layer(keras.ops.take(x, self.kept, self.axis))
        zeros = keras.ops.zeros_like(keras.ops.take(y, [0], self.axis))
        both = keras.ops.concatenate([y, zeros], self.axis)
        return keras.ops.take(both, self.places, self.axis)


def reference(graph: Graph, masks: Mapping, values: Mapping) -> keras.Model:
    """Returns a model of the old shapes that computes what the compacted one has to.

    It is the masked model, but layers that normalize over channels do so over those
    that stay.

    Args:
        graph: the graph.
        masks: group name to bool array.
        values: `{id(variable): array}`, the masked weights.
    """
    kept = graph.kept(masks)
    labels = {(id(b.variable), b.axis): b.labels for b in graph.bindings}
    unequal = {id(call.operation): call for call in graph.calls if call.unequal}

    def make(operation, path):
        call = unequal.get(id(operation))
        if call is None:
            return copy_operation_like(operation)
        twin = copy_operation_like(operation, settings_of(call, kept))
        axis = call.inputs[0].channel_axis
        return _OnKept(twin, kept(call.inputs[0].labels[axis]), axis)

    def narrowed(variable):
        own = labels.get((id(variable), 0))
        value = variable.numpy()
        return value if own is None else value[kept(own)]

    literals = graph.literals.keys() & values.keys()
    replace_literals = rewriter({key: values[key] for key in literals})
    rebuilder = Rebuilder(
        make,
        lambda node, args, kwargs: replace_literals(args, kwargs),
        parts=graph.opener(lambda call: id(call.operation) in unequal),
    )
    new = rebuilder.model(graph.model)
    for old, twin in rebuilder.pairs:
        if id(old) in unequal:
            copy_state(old, twin, narrowed)
        else:
            copy_state(old, twin, lambda v: values.get(id(v), v.numpy()))
    return new
