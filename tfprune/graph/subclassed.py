"""Subclassed models: the functional model of what their `call` is made of."""

import keras
import numpy as np
from keras import ops

from tfprune.graph.following import NotOpened
from tfprune.graph.nodes import (
    Functional,
    as_functional,
    flatten_layers,
    input_structure,
    is_recorded,
    known_call,
    not_recorded,
    tree,
)
from tfprune.graph.opening import open_layer
from tfprune.graph.shapes import assumed_shape


def as_recorded(model):
    """Returns a model whose graph is known: itself, or what a subclassed one is made of.

    Raises:
        ValueError: if `model` is no Keras model, is not built, or is a subclassed
            model that cannot be taken apart.
    """
    if not isinstance(model, keras.Model) or is_recorded(model):
        as_functional(model)
        return model
    call = known_call(model)
    if call is None:
        reason = "what its `call` is given, one tensor or several, is not known"
        raise not_recorded(model, reason)
    try:
        graph = open_layer(model, *call)
        if not model._inbound_nodes:
            graph = _with_indices(model, graph, call)
    except NotOpened as error:
        raise not_recorded(model, str(error)) from error
    # It says whether `compile` scales the loss.
    graph.dtype_policy = model.dtype_policy
    return graph


def _with_indices(model, graph: Functional, call) -> Functional:
    """Opens a model once more if some of its inputs turn out to be indices."""
    is_index = {id(x): _is_index(graph, x) for x in graph.inputs}
    if not any(is_index.values()):
        return graph
    kinds = iter(is_index.values())
    call = tree.map_structure(
        lambda x: keras.KerasTensor(x.shape, "int32" if next(kinds) else x.dtype), call
    )
    return open_layer(model, *call)


def _is_index(graph: Functional, keras_tensor) -> bool:
    """Returns whether the fraction of an input makes no difference."""
    if not any(isinstance(x, keras.layers.Embedding) for x in flatten_layers(graph)):
        return False
    random = np.random.default_rng(0)
    values = {
        id(x): random.uniform(0, 2, (2, *assumed_shape(x)[1:])) for x in graph.inputs
    }

    def outputs():
        inputs = tree.map_structure(
            lambda x: ops.cast(values[id(x)], x.dtype), input_structure(graph)
        )
        return [ops.convert_to_numpy(x) for x in tree.flatten(graph(inputs))]

    before = outputs()
    values[id(keras_tensor)] = np.floor(values[id(keras_tensor)])
    return all(map(np.array_equal, before, outputs()))
