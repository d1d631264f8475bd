"""Gates into a model and out of it again."""

import inspect
from collections.abc import Callable

import keras
import numpy as np

from tfprune.graph import Graph
from tfprune.graph.following import OwnWeight
from tfprune.graph.gates import GatePlaces
from tfprune.graph.nodes import as_functional, flatten_layers
from tfprune.layers import ChannelGate, ChannelMask
from tfprune.layers.swapping import attribute_of
from tfprune.surgery.rebuild import (
    Rebuilder,
    copy_operation_like,
    copy_state,
    initializers_of,
)


def has_gates(model: keras.Model) -> bool:
    """Returns whether any layer of a model is wrapped in a `ChannelGate`."""
    if not isinstance(model, keras.Model):
        as_functional(model)
    return any(isinstance(layer, ChannelGate) for layer in flatten_layers(model))


def prune_wrap(
    model: keras.Model,
    gate: Callable = ChannelGate,
    layers=None,
    **gate_arguments,
) -> keras.Model:
    """Returns a model with gates around its layers that computes the same.

    By default gates go where they are needed so that closing all gates of a channel
    removes it exactly: on every BatchNormalization of a prunable channel, on the
    layer that makes it where none follows, and on the input of a layer that reads it
    where something in between turns zero into non-zero. Gates of the same channels
    share one mask. Layer names, groups and outputs stay as they are.

    Args:
        model: Functional or Sequential model without gates; not changed.
        gate: gate class, or callable `gate(layer) -> layer` that gets a built copy of
            each layer.
        layers: path patterns of the layers to wrap, such as `["stage1/*"]`. By
            default every layer that needs a gate.
        **gate_arguments: passed to `gate`.

    Returns:
        A new model, uncompiled.

    Raises:
        ValueError: if the model has gates already or nothing to gate, a pattern
            matches no layer that can be gated, or the gate knows no such argument.

    Example:

    ```python
    model = tfprune.prune_wrap(base, tfprune.layers.ChannelGate)
    model.compile("sgd", "mse")
    model.fit(x, y, callbacks=[tfprune.callbacks.PruneToBudget("magnitude", budget)])
    ```
    """
    graph = Graph(model)
    if has_gates(graph.model):
        raise ValueError(
            f"Model {model.name!r} has gates already. Call `tfprune.strip` first."
        )
    _check_arguments(gate, gate_arguments)
    places = GatePlaces(graph)
    if layers is not None:
        places.restrict([layers] if isinstance(layers, str) else list(layers))
    if not places.outputs and not places.inputs:
        raise ValueError(
            f"Model {model.name!r} has no channels that can be pruned, so there is "
            f"nothing to gate. Why: {graph.locked}"
        )
    return _wrap(model, graph, places, gate, gate_arguments)


def _check_arguments(gate, arguments: dict) -> None:
    if not callable(gate):
        raise ValueError(
            "`gate` must be a gate class or a callable `gate(layer) -> layer`. "
            f"Received: {gate!r}"
        )
    own = {"self", "layer", "mask", "input_masks", "args", "kwargs"}
    known = [name for name in inspect.signature(gate).parameters if name not in own]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise ValueError(
            f"{getattr(gate, '__name__', gate)} takes no argument `{unknown[0]}`. "
            f"Its arguments are: {', '.join(known) or 'none'}."
        )


def _wrap(
    model, graph: Graph, places: GatePlaces, gate, arguments: dict
) -> keras.Model:
    masks: dict[bytes, ChannelMask] = {}

    def shared_mask(labels, path):
        # Layers whose channels are the same units, in the same order, share a mask.
        key = graph.units(labels).tobytes()
        if key not in masks:
            masks[key] = ChannelMask(len(labels), name=f"{path.replace('/', '_')}_mask")
        return masks[key]

    def make(operation, path):
        output = places.outputs.get(id(operation))
        inputs = places.inputs.get(id(operation), {})
        is_gate = isinstance(gate, type) and issubclass(gate, ChannelGate)
        if output is None and not (inputs and is_gate):
            return copy_operation_like(operation)
        twin = _built_copy(operation)
        if not is_gate:
            return _checked_gate(gate(twin, **arguments), path)
        return gate(
            twin,
            mask=False if output is None else shared_mask(output, path),
            input_masks={k: shared_mask(ls, path) for k, ls in inputs.items()},
            **arguments,
        )

    rebuilder = Rebuilder(make, parts=graph.opener(places.has_gate))
    new = rebuilder.model(graph.model)
    for old, twin in rebuilder.pairs:
        if type(twin) is type(old) or isinstance(old, OwnWeight):
            copy_state(old, twin)
    return new


def _built_copy(layer):
    """Returns a copy with weights: a gate may look at them, and take them over."""
    twin = copy_operation_like(layer)
    twin.build_from_config(layer.get_build_config())
    copy_state(layer, twin)
    return twin


def _checked_gate(gated, path: str):
    if isinstance(gated, keras.layers.Layer):
        return gated
    raise ValueError(
        f"`gate` must return a Keras layer. Received for {path!r}: {gated!r}"
    )


def strip(model: keras.Model) -> keras.Model:
    """Returns a plain Keras model without gates that computes the same.

    Gates and masks are multiplied into the layers, so a closed channel has zero scale
    and shift, or a zero filter. Shapes stay as they are; see `compact`. Constraints
    that hold masked weights at zero are removed too.

    Args:
        model: Functional or Sequential model, with or without gates; not changed.

    Returns:
        A new model of plain Keras layers, uncompiled.

    Example:

    ```python
    tfprune.strip(model).save("plain.keras")
    ```
    """
    return strip_gates(model, lambda gate: slice(None))


def strip_gates(model: keras.Model, counts: Callable) -> keras.Model:
    """Returns what `strip` does, where some channels need not come out right.

    Args:
        model: the model with gates.
        counts: function from a gate to an index of the channels that count.
    """
    rebuilder = Rebuilder(lambda operation, path: _copy_without_gate(operation, counts))
    new = rebuilder.model(model)
    for old, twin in rebuilder.pairs:
        if isinstance(old, ChannelGate):
            _fold_gate(old, twin)
        else:
            copy_state(old, twin)
    return new


def _copy_without_gate(operation, counts):
    if not isinstance(operation, ChannelGate):
        return copy_operation_like(operation, plain=True)
    # A normalization without scale gets one, unless its gate is all open at 1.
    is_norm = isinstance(operation.layer, keras.layers.BatchNormalization)
    needs_none = not is_norm or operation.layer.scale or operation.output_mask is None
    if needs_none or np.all(operation.factors().numpy()[counts(operation)] == 1):
        return copy_operation_like(operation.layer, plain=True)
    return copy_operation_like(operation.layer, {"scale": True}, plain=True)


def _fold_gate(gate: ChannelGate, twin) -> None:
    """Gives a plain copy the weights that the gate makes its layer run with."""
    values = gate.swaps()
    added = len(twin.variables) - len(gate.layer.variables)
    # A scale that the layer did not have comes first among its variables.
    for old, new in zip(gate.layer.variables, twin.variables[added:], strict=True):
        new.assign(values.get(attribute_of(gate.layer, old), old))
    if added:
        twin.gamma.assign(values["gamma"])
    vars(twin).update(initializers_of(gate.layer))
