"""The one home of Keras's private graph API: how to walk a model's nodes."""

import contextlib
import inspect

import keras
from keras.src.applications.convnext import LayerScale
from keras.src.models.functional import Functional, functional_like_constructor
from keras.src.ops.operation import Operation
from keras.src.saving.serialization_lib import (
    ObjectSharingScope,
    record_object_after_deserialization,
    record_object_after_serialization,
)
from keras.src.trainers.compile_utils import get_loss
from keras.src.tree import tree_api as tree

from tfprune.layers import SwapWrapper

__all__ = [
    "Functional",
    "LayerScale",
    "Operation",
    "as_functional",
    "class_for_copies",
    "fill_in",
    "flatten_layers",
    "follow_training",
    "forget_defaults",
    "get_loss",
    "input_layer_of",
    "input_masks",
    "input_structure",
    "inputs_in_order",
    "inside_call",
    "is_recorded",
    "known_call",
    "model_of_steps",
    "nodes_in_order",
    "not_recorded",
    "object_sharing_scope",
    "output_structure",
    "recorded_arguments",
    "share_copy",
    "tree",
    "unrecorded",
    "without_defaults",
]


def as_functional(model) -> Functional:
    """Returns the `Functional` behind a Functional or Sequential model.

    Raises:
        ValueError: if `model` is no Keras model, is not built, or is a subclassed
            model, whose graph Keras does not record.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`model` must be a Keras 3 Functional or Sequential model. "
            f"Received: {model!r} (of type {type(model).__name__})"
        )
    if isinstance(model, keras.Sequential):
        if getattr(model, "_functional", None) is None:
            raise ValueError(
                "`model` must be built: its shapes are not known yet. "
                f"Received: unbuilt Sequential {model.name!r}. Start it with "
                "`keras.Input(shape)` or call `model.build(input_shape)` first."
            )
        return model._functional
    if not isinstance(model, Functional):
        raise not_recorded(model, "it records no graph of layers")
    return model


def not_recorded(model, reason: str) -> ValueError:
    """Returns the error for a subclassed model whose graph is not known."""
    advice = (
        " Wrap its call: `inputs = keras.Input(shape); "
        "model = keras.Model(inputs, subclassed.call(inputs))`."
    )
    if "keras.ops" in reason:
        # The wrapped call would meet the same functions.
        advice = ""
    return ValueError(
        "`model` must be a Functional or Sequential model, or a subclassed model "
        f"that can be taken apart, and this one cannot: {reason}. Received: "
        f"{model.name!r} of class {type(model).__name__}.{advice}"
    )


def is_recorded(operation) -> bool:
    """Returns whether something is a model that does what its graph says, no more.

    A class of a user's own may have another `call`.
    """
    if isinstance(operation, keras.Sequential):
        return type(operation).call is keras.Sequential.call
    return isinstance(operation, Functional) and type(operation).call is Functional.call


def model_of_steps(operation):
    """Returns the model that a `TimeDistributed` calls on every step, None for others.

    Only one that does what its graph says.
    """
    is_around = type(operation) is keras.layers.TimeDistributed
    return operation.layer if is_around and is_recorded(operation.layer) else None


def nodes_in_order(functional: Functional) -> list:
    """Returns the nodes of one model, every node after those it reads."""
    by_depth = functional._nodes_by_depth
    return [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if node.operation and not node.is_input
    ]


def fill_in(node, tensors: dict):
    """Returns `(args, kwargs)` of a node with `tensors[id(keras_tensor)]` put in."""
    return node.arguments.fill_in(tensors)


def inputs_in_order(functional: Functional, inputs) -> list:
    """Returns what a model is called on, in the order of its own inputs.

    As Keras does: a dict may name the inputs of a model of a list, and more than these.
    """
    own = functional._inputs_struct
    if isinstance(inputs, dict):
        names = own if isinstance(own, dict) else [x.name for x in tree.flatten(own)]
        inputs = {name: inputs[name] for name in names}
        inputs = inputs if isinstance(own, dict) else list(inputs.values())
    return tree.flatten(inputs)


def recorded_arguments(node) -> tuple[tuple, dict]:
    """Returns `(args, kwargs)` of a node as recorded, with `KerasTensor`s."""
    return node.arguments.args, node.arguments.kwargs


def known_call(model):
    """Returns `(args, kwargs)` that a subclassed model is called with, None if unknown.

    What it was called with on symbolic inputs, if it ever was. What Keras remembers
    of a call on data is the shape of its first argument, not its type.
    """
    if model._inbound_nodes:
        return recorded_arguments(model._inbound_nodes[0])
    if isinstance(model, (Functional, keras.Sequential)):
        return (input_structure(as_functional(model)),), {}
    arguments = inspect.signature(model.call).parameters.keys() - {"training", "mask"}
    shapes = list((model._build_shapes_dict or {}).values())
    if len(arguments) != 1 or len(shapes) != 1:
        return None
    given = tree.map_shape_structure(
        lambda shape: keras.KerasTensor((None, *shape[1:]), model.variable_dtype),
        shapes[0],
    )
    return (_untracked(given),), {}


def _untracked(structure):
    """Returns dicts and lists that Keras has wrapped as what they are."""
    if isinstance(structure, dict):
        return {name: _untracked(each) for name, each in structure.items()}
    if isinstance(structure, list):
        return [*map(_untracked, structure)]
    return structure


def follow_training(node) -> None:
    """Lets a node take `training` from whoever runs the graph."""
    node.arguments.kwargs.pop("training", None)


def without_defaults(layer, kwargs: dict) -> dict:
    """Returns keyword arguments without those that are None, as they are by default."""
    parameters = inspect.signature(layer.call).parameters
    return {
        name: value
        for name, value in kwargs.items()
        if value is not None
        or name not in parameters
        or parameters[name].default is not None
    }


def forget_defaults(node) -> None:
    """Leaves out of a recorded call what it is by default."""
    if isinstance(node.operation, keras.layers.Layer):
        node.arguments.kwargs = without_defaults(node.operation, node.arguments.kwargs)


def input_masks(structure) -> list:
    """Returns the mask on every tensor of a structure, None where there is none."""
    return [getattr(x, "_keras_mask", None) for x in tree.flatten(structure)]


@contextlib.contextmanager
def unrecorded(layer):
    """Calls inside leave no trace on a layer and the layers in it, if it is one.

    Keras notes every symbolic call on the layers themselves, which would change how a
    model they belong to is saved.
    """
    is_layer = isinstance(layer, keras.layers.Layer)
    parts = layer._flatten_layers() if is_layer else []
    counts = [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in parts]
    losses = [(list(x._losses), set(x._loss_ids)) for x in parts]
    try:
        yield
    finally:
        for each, (inbound, outbound) in zip(parts, counts, strict=True):
            del each._inbound_nodes[inbound:]
            del each._outbound_nodes[outbound:]
        # Those of the last call, which the next call clears.
        for each, (values, ids) in zip(parts, losses, strict=True):
            each._losses[:] = values
            each._loss_ids.update(ids)


@contextlib.contextmanager
def inside_call(layer, training: bool):
    """Layers called inside take `training` as they do from the `call` of `layer`."""
    context = layer._get_call_context()
    context.set_value("training", training)
    try:
        yield
    finally:
        layer._maybe_reset_call_context()


def input_structure(functional: Functional):
    return functional._inputs_struct


def output_structure(functional: Functional):
    return functional._outputs_struct


def class_for_copies(model) -> type:
    """Returns the class to rebuild a functional model as: its own where that works.

    A subclass with a `train_step` of its own stays itself, as in `clone_model`, if
    its constructor takes inputs and outputs, and its `call` does no more.
    """
    own = type(model)
    stays = is_recorded(model) and functional_like_constructor(own)
    return own if stays else keras.Model


def flatten_layers(layer) -> list:
    """Returns a layer and all layers inside it; a gate counts as the layer it wraps."""
    if isinstance(layer, SwapWrapper):
        return flatten_layers(layer.layer)
    return list(layer._flatten_layers())


def input_layer_of(keras_tensor):
    """Returns the `InputLayer` that made an input tensor of a model."""
    return keras_tensor._keras_history.operation


def object_sharing_scope():
    """Returns a context in which objects that share an id are deserialized once."""
    return ObjectSharingScope()


def share_copy(operation, copy) -> None:
    """Lets layers made later, whose config holds `operation`, hold its copy instead.

    In an `object_sharing_scope`, where Keras would make another copy of it. Inside a
    gate it is the layer there; something else in its place is not shared.
    """
    gated = isinstance(copy, SwapWrapper) and not isinstance(operation, SwapWrapper)
    copy = copy.layer if gated else copy
    if type(copy) is not type(operation):
        return
    record_object_after_serialization(operation, {"module": None})
    record_object_after_deserialization(copy, id(operation))
