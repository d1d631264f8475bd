"""Masks on single weights: gates on kernels, and the masks in them."""

import glob
import warnings
from collections.abc import Callable, Mapping

import keras
import numpy as np

from tfprune.graph import Graph, WeightGraph
from tfprune.graph.nodes import recorded_arguments
from tfprune.layers import KernelGate, WeightMask
from tfprune.masks import Masks
from tfprune.patterns import as_patterns
from tfprune.surgery.rebuild import Rebuilder, copy_operation_like, copy_state


def wrap_kernels(model, gate: Callable, layers=None, **arguments) -> keras.Model:
    """Returns a model with gates around the layers that have kernels.

    Args:
        model: model without gates, or its `WeightGraph`; not changed.
        gate: subclass of `KernelGate`.
        layers: path patterns of layers or kernels. By default all.
        **arguments: passed to `gate`.

    Raises:
        ValueError: if there is nothing to gate, or a pattern matches nothing.
    """
    graph = model if isinstance(model, Graph) else Graph(model, unit="weight")
    chosen = _chosen(graph, layers)

    def make(operation, path):
        if id(operation) not in chosen:
            return copy_operation_like(operation)
        gated = gate(built_copy(operation), kernels=chosen[id(operation)], **arguments)
        if _runs(gated, operation, path):
            return gated
        return copy_operation_like(operation)

    rebuilder = Rebuilder(make)
    new = rebuilder.model(graph.model)
    for old, twin in rebuilder.pairs:
        if type(twin) is type(old):
            copy_state(old, twin)
    return new


def built_copy(layer):
    """Returns a copy with weights: a gate may look at them, and take them over."""
    twin = copy_operation_like(layer)
    twin.build_from_config(layer.get_build_config())
    copy_state(layer, twin)
    return twin


def _chosen(graph: WeightGraph, patterns) -> dict:
    """Returns `{id(layer): kernels to gate}`, None standing for all of a layer's."""
    names = [group.name for group in graph.groups]
    if patterns is not None:
        patterns = as_patterns("layers", patterns)
        names = [group.name for each in patterns for group in graph.match(each)]
    if not names:
        raise ValueError(
            f"Model {graph.model.name!r} has no kernels to mask. Why: {graph.skipped}"
        )
    chosen: dict[int, list | None] = {}
    for name in dict.fromkeys(names):
        kernel = graph.kernels[name]
        chosen.setdefault(id(kernel.layer), []).append(kernel.place)
    for kernel in graph.kernels.values():
        own = [k.place for k in graph.kernels.values() if k.layer is kernel.layer]
        if chosen.get(id(kernel.layer)) == own:
            chosen[id(kernel.layer)] = None
    return chosen


def _runs(gated: KernelGate, layer, path: str) -> bool:
    """Returns whether a layer runs on tensors in the place of its kernels."""
    if type(layer).__module__.startswith("keras."):
        return True
    args, kwargs = recorded_arguments(layer._inbound_nodes[0])
    try:
        keras.Operation.compute_output_spec(gated, *args, **kwargs)
    except Exception as error:
        warnings.warn(
            f"Layer {path!r} ({type(layer).__name__}) keeps all its weights: it does "
            f"not run on tensors in the place of its kernels. {error}",
            stacklevel=4,
        )
        return False
    return True


def masked_weights(graph: WeightGraph, masks: Mapping, kernels: Mapping):
    """Returns a model with `WeightMask`s that hold what masks remove at zero.

    Args:
        graph: `WeightGraph` of a model without gates.
        masks: group name to bool array; missing groups stay whole.
        kernels: group name to array: values for kernels to take.
    """
    graph.check(masks)
    _check_kernels(graph, kernels)
    names = [name for name, mask in masks.items() if not np.all(mask)]
    model = wrap_kernels(
        graph, WeightMask, [glob.escape(name) for name in names] or None
    )
    new = graph.of(model)
    for name, value in kernels.items():
        new.kernels[name].variable.assign(value)
    set_weight_masks(new, masks)
    return model


def _check_kernels(graph: WeightGraph, kernels: Mapping) -> None:
    for name, value in kernels.items():
        # Raises for a name that is none.
        graph.group(name)
        shape = tuple(graph.kernels[name].variable.shape)
        if np.shape(value) != shape:
            raise ValueError(
                f"`kernels` must have the shapes of the model's. Received: {name!r} of "
                f"shape {np.shape(value)}, which is {shape} in the model."
            )


def set_weight_masks(graph: WeightGraph, masks: Mapping) -> None:
    """Writes masks into the gates of the graph's model, in place.

    Args:
        graph: `WeightGraph` of a model with gates on its kernels.
        masks: group name to bool array, True = keep; missing groups are opened.
    """
    graph.check(masks)
    for name, kernel in graph.kernels.items():
        if kernel.gate is not None:
            mask = masks.get(name)
            mask = np.ones(graph.group(name).size, bool) if mask is None else mask
            kernel.gate.set_mask(kernel.index, graph.expanded(name, mask))


def weight_masks(graph: WeightGraph) -> Masks:
    """Returns the masks in the gates of a model, or where it has none, its zeros."""
    return Masks(
        {name: _mask(graph, name, kernel) for name, kernel in graph.kernels.items()}
    )


def _mask(graph: WeightGraph, name: str, kernel) -> np.ndarray:
    if kernel.gate is None:
        mask = kernel.variable.numpy() != 0
    else:
        mask = kernel.gate.mask(kernel.index).numpy()
    return (
        graph.pooled(name, mask.astype(np.float32)) > 0
        if graph.block
        else (mask.reshape(-1))
    )
