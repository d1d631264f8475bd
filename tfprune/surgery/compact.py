"""compact: masks become shapes."""

from collections.abc import Mapping

import keras

from tfprune.graph import Graph
from tfprune.graph.registry import settings_of
from tfprune.surgery.certificate import certify, finite_probe, run
from tfprune.surgery.mask import dead_masks, gate_masks, zeroed_values
from tfprune.surgery.rebuild import Rebuilder, copy_operation_like, copy_state
from tfprune.surgery.rewrites import (
    faster_layer,
    faster_value,
    foldable_normalizations,
    folded_values,
)
from tfprune.surgery.wrap import has_gates, strip_gates


def compact(
    model: keras.Model, masks: Mapping | None = None, optimize: bool = False
) -> keras.Model:
    """Returns a smaller model without the masked channels, verified.

    Every weight that stays is an exact slice of the original, every layer keeps its
    name, and the result is plain Keras: no gates, no masks, not compiled. It
    computes what `apply_masks(model, masks)` computes; old and new are run on probe
    inputs, and a model whose outputs differ is never returned.

    Args:
        model: Functional or Sequential model, with or without gates; not changed.
        masks: group name to bool array, True = keep; missing groups stay whole.
            None removes what the model itself shows to be dead: channels whose
            readers all get exact zeros (closed gates, zero scale and shift, zero
            filters). Then the outputs are those of `model`.
        optimize: whether layers are replaced by faster ones that compute the same in
            inference: a BatchNormalization right behind a convolution or dense layer
            moves into it, and a convolution with as many groups as channels becomes a
            depthwise one. For the last step, when training is done. Defaults to False.

    Returns:
        A new model, uncompiled.

    Raises:
        ValueError: if masks belong to another model or empty a group, weights are
            not finite, or the certificate fails.

    Example:

    ```python
    small = tfprune.compact(model, masks)
    ```
    """
    graph = Graph(model)
    chosen = dead_masks(graph) if masks is None else masks
    graph.check(chosen)
    values = None if masks is None else zeroed_values(graph, masks)
    probes, expected = finite_probe(model, values)
    if has_gates(model):
        graph = Graph(strip_gates(model, _open_channels(graph, chosen)))
    small = compact_unverified(graph, chosen, optimize)
    certify(expected, run(small, probes), model)
    return small


def _open_channels(graph: Graph, masks: Mapping):
    """Returns the function from a gate to the channels that stay."""
    kept = graph.kept(masks)
    labels = {id(variable): labels for variable, labels in gate_masks(graph)}

    def channels(gate):
        own = labels.get(id(gate.output_mask.mask))
        return slice(None) if own is None else kept(own)

    return channels


def compact_unverified(
    graph: Graph, masks: Mapping, optimize: bool = False
) -> keras.Model:
    """Returns the smaller model without its certificate; for `compact` and timing."""
    kept = graph.kept(masks)
    labels = {(id(b.variable), b.axis): b.labels for b in graph.bindings}
    folds = foldable_normalizations(graph) if optimize else {}
    folded = {id(normalization) for normalization in folds.values()}
    by_operation, by_node = {}, {}
    for call in graph.calls:
        by_operation.setdefault(id(call.operation), call)
        by_node.setdefault(id(call.node), call)

    def sliced(variable, value=None):
        value = variable.numpy() if value is None else value
        for axis in range(value.ndim):
            if (id(variable), axis) in labels:
                value = value.compress(kept(labels[id(variable), axis]), axis)
        return value

    def make(operation, path):
        if id(operation) in folded:
            return keras.layers.Identity(name=operation.name)
        settings = settings_of(by_operation[id(operation)], kept)
        if id(operation) in folds:
            settings["use_bias"] = True
        twin = copy_operation_like(operation, settings, plain=True)
        return faster_layer(twin, operation) if optimize else twin

    def rewrite(node, args, kwargs):
        if id(node.operation) in folded:
            # An Identity takes no mask.
            return (*args, kwargs.get("inputs"))[:1], {}
        call = by_node.get(id(node))
        if call is None or call.arguments is None:
            return args, kwargs
        return call.arguments(kept, args, kwargs)

    rebuilder = Rebuilder(make, rewrite, lambda m: _input_shapes(graph, m, kept))
    new = rebuilder.model(graph.model)
    for old, twin in rebuilder.pairs:
        if id(old) in folds:
            _assign_folded(old, folds[id(old)], twin, sliced)
        elif id(old) not in folded:
            copy_state(old, twin, lambda v, t=twin: faster_value(t, sliced(v)))
    return new


def _input_shapes(graph: Graph, model, kept) -> list:
    """Returns the shapes of a model's inputs; those of nested models get narrower."""
    shapes = [tuple(x.shape) for x in model.inputs]
    tensors = graph.nested_inputs(model)
    if tensors is None:
        return shapes
    return [
        tuple(
            size if labels is None else int(kept(labels).sum())
            for size, labels in zip(shape, tensor.labels, strict=True)
        )
        for shape, tensor in zip(shapes, tensors, strict=True)
    ]


def _assign_folded(old, normalization, twin, sliced) -> None:
    """Gives a copy the weights with which it also does the normalization's work."""
    values, bias = folded_values(old, normalization)
    kernels = [variable for variable in old.variables if variable is not old.bias]
    for source, target in zip(kernels, twin.variables, strict=False):
        value = sliced(source, values.get(id(source)))
        target.assign(faster_value(twin, value))
    twin.bias.assign(sliced(normalization.moving_mean, bias))
