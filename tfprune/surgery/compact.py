"""compact: masks become shapes."""

from collections.abc import Mapping

import keras

from tfprune.graph import Graph, as_graph
from tfprune.graph.literals import rewriter
from tfprune.graph.registry import settings_of
from tfprune.reading import shared_array
from tfprune.surgery.added import leave_off_added
from tfprune.surgery.certificate import Certificate
from tfprune.surgery.folding import fold_constants, with_constants
from tfprune.surgery.gates import has_gates, has_kernel_gates
from tfprune.surgery.mask import apply_masks, dead_masks, gate_masks, zeroed_values
from tfprune.surgery.rebuild import (
    Rebuilder,
    copy_operation_like,
    copy_state,
    with_new_weights,
)
from tfprune.surgery.reference import reference
from tfprune.surgery.rewrites import faster
from tfprune.surgery.wrap import strip, strip_gates


def compact(
    model: keras.Model | Graph,
    masks: Mapping | None = None,
    optimize: bool = False,
    fold: bool = False,
    reinitialize: bool = False,
) -> keras.Model:
    """Returns a smaller model without the masked channels, verified.

    Every weight that stays is an exact slice of the original, every layer keeps its
    name, and the result is plain Keras: no masks, no gates but those that choose
    at run time (see `runtime.deploy`), not compiled. It
    computes what `apply_masks(model, masks)` computes; old and new are run on probe
    inputs, and a model whose outputs differ is never returned.

    Args:
        model: Functional, Sequential or subclassed model, with or without gates, or
            the `Graph` of one; not changed.
        masks: group name to bool array, True = keep; missing groups stay whole.
            None removes what the model itself shows to be dead: channels whose
            readers all get exact zeros (closed gates, zero scale and shift, zero
            filters). Then the outputs are those of `model`.
        optimize: whether layers are replaced by faster ones that compute the same in
            inference: a BatchNormalization right behind a convolution or dense layer
            moves into it, a convolution with as many groups as channels becomes a
            depthwise one, and one of a single place on a small map a dense layer. For
            the last step, when training is done. Defaults to False.
        fold: whether channels that are constant but not zero go too (a scale of zero
            beside any shift), without a change to the outputs: what they add up to
            moves into the bias or the normalization behind their readers, or, where
            these pad, into the weights of one constant channel that stays. With masks,
            masked channels count as such: their scales, or filters, are taken as zero,
            and what their shifts leave is kept in this way, where it can be; the
            result computes that. Weights that take it up are no slices of the
            original's. Defaults to False.
        reinitialize: whether the smaller model, once it is verified, gets weights that
            its initializers draw anew: the control that is trained from scratch.
            Defaults to False.

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
    graph = as_graph(model)
    if has_kernel_gates(graph.model):
        graph = graph.of(strip(graph.model))
    graph.check({} if masks is None else masks)
    if fold and masks is not None:
        graph = graph.of(with_constants(_without_gates(graph), masks))
        masks = None
    model = graph.model
    values = None if masks is None else zeroed_values(graph, masks)
    if values and graph.unequal:
        model, values = reference(graph, masks, values), None
    elif values and graph.literals.keys() & values.keys():
        # Weights that Keras does not know of cannot be lent to a run.
        model, values = apply_masks(model, masks), None
    certificate = Certificate(model, values)
    small = _folded(graph) if fold else _compacted(graph, masks)
    if optimize:
        small = faster(small)
    certificate.check(small)
    return with_new_weights(small) if reinitialize else small


def _folded(graph: Graph) -> keras.Model:
    graph = _without_gates(graph)
    masks, values = fold_constants(graph)
    return compact_unverified(graph, masks, values)


def _without_gates(graph: Graph) -> Graph:
    if not has_gates(graph.model):
        return graph
    return graph.of(strip(graph.model))


def _compacted(graph: Graph, masks: Mapping | None) -> keras.Model:
    masks = dead_masks(graph) if masks is None else masks
    if has_gates(graph.model):
        plain = strip_gates(graph.model, _open_channels(graph, masks))
        graph = graph.of(plain)
    return compact_unverified(graph, masks)


def _open_channels(graph: Graph, masks: Mapping):
    """Returns the function from a gate to the channels that stay."""
    kept = graph.kept(masks)
    labels = {id(variable): labels for variable, labels in gate_masks(graph)}

    def channels(gate):
        own = labels.get(id(gate.output_mask.mask))
        return slice(None) if own is None else kept(own)

    return channels


def compact_unverified(
    graph: Graph, masks: Mapping, values: Mapping | None = None
) -> keras.Model:
    """Returns the smaller model without its certificate; for `compact` and timing.

    Args:
        graph: graph of a model without gates.
        masks: group name to bool array.
        values: `{id(variable): array}` in the place of the model's own values.
    """
    kept = graph.kept(masks)
    # Read in one go: reading from inside Keras's layers takes three times as long.
    values = {id(v): shared_array(v) for v in graph.model.variables} | (values or {})
    labels = {(id(b.variable), b.axis): b.labels for b in graph.bindings}
    by_operation, by_node = {}, {}
    for call in graph.calls:
        by_operation.setdefault(id(call.operation), call)
        by_node.setdefault(id(call.node), call)

    def sliced(variable):
        whole = values.get(id(variable))
        value = whole = shared_array(variable) if whole is None else whole
        for axis in range(value.ndim):
            if (id(variable), axis) in labels:
                value = value.compress(kept(labels[id(variable), axis]), axis)
        # TensorFlow may keep the memory of an array, and this is the old variable's.
        return value.copy() if value is whole else value

    def make(operation, path):
        call = by_operation.get(id(operation))
        settings = {} if call is None else settings_of(call, kept)
        return copy_operation_like(operation, settings, value_of=sliced)

    replace_literals = rewriter({k: sliced(x) for k, x in graph.literals.items()})

    def rewrite(node, args, kwargs):
        call = by_node.get(id(node))
        if call is not None and call.arguments is not None:
            args, kwargs = call.arguments(kept, args, kwargs)
        return replace_literals(args, kwargs)

    rebuilder = Rebuilder(
        make,
        rewrite,
        lambda functional: _input_shapes(graph, functional, kept),
        graph.opener(lambda call: _loses_channels(call, labels, kept)),
    )
    new = rebuilder.model(graph.model)
    for old, twin in rebuilder.pairs:
        copy_state(old, twin, sliced)
        leave_off_added(twin)
    return new


def _loses_channels(call, labels: dict, kept) -> bool:
    tensors = [x.labels for x in call.inputs + call.outputs]
    variables = [
        [labels.get((id(variable), axis)) for axis in range(len(variable.shape))]
        for variable in getattr(call.layer, "variables", ())
    ]
    return any(
        each is not None and not kept(each).all()
        for axes in tensors + variables
        for each in axes
    )


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
