"""Masks on a model of the same shape: written, held, read."""

from collections.abc import Mapping

import keras
import numpy as np

from tfprune.constraints import ZeroSlices
from tfprune.graph import Graph, WeightGraph, as_graph
from tfprune.graph.constants import dead_units
from tfprune.graph.following import OwnWeight
from tfprune.graph.literals import rewriter
from tfprune.graph.nodes import flatten_layers
from tfprune.layers import ChannelGate
from tfprune.masks import Masks
from tfprune.reading import shared_array
from tfprune.surgery.gates import has_gates, has_kernel_gates
from tfprune.surgery.rebuild import Rebuilder, copy_operation_like, copy_state
from tfprune.surgery.weights import (
    masked_weights,
    set_weight_masks,
    weight_masks,
)
from tfprune.surgery.wrap import strip


def apply_masks(
    model: keras.Model | Graph, masks: Mapping, kernels: Mapping | None = None
) -> keras.Model:
    """Returns a model of the same shapes with every masked channel at zero.

    A pruned channel has all its slices zeroed, in the layers that make it, carry it
    and read it, so no activation or padding can bring it back. The zeros hold in
    further training: a constraint on each variable restores them in every step.

    Masks of single weights become `WeightMask`s, which hold them in the same way.

    Args:
        model: Functional, Sequential or subclassed model, with or without gates, or the
            `Graph` of one, which masks of single weights need; not changed.
        masks: group name to bool array, True = keep; missing groups stay whole.
        kernels: with masks of single weights, `{group name: array}`: values for kernels
            to take, such as `importances.LOBS().compensated`. Defaults to None.

    Returns:
        A new model, uncompiled.

    Raises:
        ValueError: if masks or kernels belong to another model, or a group is emptied.

    Example:

    ```python
    masked = tfprune.apply_masks(model, masks)
    ```
    """
    if isinstance(model, WeightGraph):
        has_own = has_gates(model.model)
        graph = model.of(strip(model.model)) if has_own else model
        return masked_weights(graph, masks, kernels or {})
    graph = as_graph(model)
    if kernels is not None:
        raise ValueError(
            "`kernels` go with masks of single weights: pass `Graph(model, "
            'unit="weight")` as `model`. Received: a graph of channels.'
        )
    values = zeroed_values(graph, masks)
    dropped = dropped_slices(graph, masks)
    literals = graph.literals.keys() & values.keys()
    replace_literals = rewriter({key: values[key] for key in literals})

    def masked(variable):
        value = values.get(id(variable))
        return variable.numpy() if value is None else value

    rebuilder = Rebuilder(
        lambda operation, path: copy_operation_like(operation, value_of=masked),
        lambda node, args, kwargs: replace_literals(args, kwargs),
        # In a layer of its own that is saved with it, a constraint is saved too.
        parts=graph.opener(lambda call: _holds_any(call.layer, values)),
    )
    new = rebuilder.model(graph.model)
    for old, twin in rebuilder.pairs:
        copy_state(old, twin, masked)
        _hold(old, twin, dropped)
    return new


def _holds_any(layer, variables: Mapping) -> bool:
    return any(
        id(variable) in variables for variable in getattr(layer, "variables", ())
    )


def dropped_slices(graph: Graph, masks: Mapping) -> dict[int, dict[int, np.ndarray]]:
    """Returns `{id(variable): {axis: indices}}` of everything that masks remove."""
    kept = graph.kept(masks)
    dropped: dict[int, dict[int, np.ndarray]] = {}
    for binding in graph.bindings:
        indices = np.flatnonzero(~kept(binding.labels))
        if len(indices):
            dropped.setdefault(id(binding.variable), {})[binding.axis] = indices
    return dropped


def zeroed_values(graph: Graph, masks: Mapping) -> dict[int, np.ndarray]:
    """Returns `{id(variable): array}` with zeros in everything that masks remove."""
    variables = {id(b.variable): b.variable for b in graph.bindings}
    values = {}
    for key, axes in dropped_slices(graph, masks).items():
        value = np.array(shared_array(variables[key]))
        for axis, indices in axes.items():
            value[(slice(None),) * axis + (indices,)] = 0
        values[key] = value
    return values


def _hold(old, twin, dropped: dict) -> None:
    """Puts a constraint on every trainable variable that has zeros to hold."""
    pairs = zip(
        getattr(old, "variables", ()), getattr(twin, "variables", ()), strict=True
    )
    for source, target in pairs:
        if id(source) not in dropped or not source._trainable:
            continue
        slices = dropped[id(source)]
        if isinstance(old, OwnWeight):
            # The last axis is all that can lose channels, and is that of the table.
            slices = {1: indices for indices in slices.values()}
        target.constraint = ZeroSlices(slices, source.constraint)
        for part in flatten_layers(twin):
            attribute = _constraint_attribute(part, target)
            if attribute is not None:
                # The layer's own record of it, which is what gets saved.
                setattr(part, attribute, target.constraint)


def _constraint_attribute(layer, variable) -> str | None:
    if not any(value is variable for value in vars(layer).values()):
        return None
    names = [f"{variable.name.removesuffix('_kernel')}_constraint"]
    if variable.name == "kernel":
        names.insert(0, "depthwise_constraint")
    for name in names:
        if name in vars(layer):
            return name
    return None


def read_masks(model: keras.Model | Graph) -> Masks:
    """Returns the masks a model shows: closed gates, or channels that are all zero.

    A channel counts as masked if every layer that reads it gets exact zeros from it,
    whatever the input. A group that is dead as a whole keeps its first channel, as
    a layer needs one.

    Of a model with masks on single weights, those are read; of the graph of single
    weights, the masks in its gates, or else what is exactly zero.

    Args:
        model: Functional, Sequential or subclassed model, with or without gates, or
            its `Graph`.

    Returns:
        `Masks` with one mask per group of the graph.

    Raises:
        ValueError: if the model is unbuilt or cannot be taken apart.

    Example:

    >>> tfprune.read_masks(tfprune.apply_masks(model, masks)) == masks
    True
    """
    if not isinstance(model, Graph) and has_kernel_gates(model):
        model = Graph(model, unit="weight")
    return masks_in(model if isinstance(model, Graph) else Graph(model))


def masks_in(graph: Graph) -> Masks:
    """Returns the masks that the graph's model shows, of channels or of weights."""
    is_channels = graph.unit == "channel"
    return dead_masks(graph) if is_channels else weight_masks(graph)


def dead_masks(graph: Graph) -> Masks:
    """Returns the masks of what is dead in the graph's model."""
    masks = _alive(graph)
    for mask in masks.values():
        if not mask.any():
            mask[0] = True
    return Masks(masks)


def _alive(graph: Graph) -> dict[str, np.ndarray]:
    if graph.unit == "weight":
        return weight_masks(graph)
    return graph.masks_of(np.append(~dead_units(graph), True))


def set_masks(graph: Graph, masks: Mapping) -> None:
    """Writes masks into the gates of the graph's model, in place.

    Only values change, never shapes: this is what callbacks do during `fit`, and what a
    training loop of one's own calls between its steps.

    Args:
        graph: `Graph` of a model with gates: `Graph(model)` for channels,
            `Graph(model, unit="weight")` for single weights.
        masks: group name to bool array, True = keep; missing groups are opened.

    Raises:
        ValueError: if the model has no gates, or none on what is to be closed, masks
            belong to another model, or a group is emptied.

    Example:

    ```python
    gated = tfprune.prune_wrap(model)
    graph = tfprune.Graph(gated)
    for epoch, sparsity in enumerate((0.2, 0.4, 0.5)):
        budget = tfprune.Budget(sparsity=sparsity)
        tfprune.set_masks(graph, tfprune.select(graph, "magnitude", budget))
        # ... and the steps of the epoch
    small = tfprune.compact(gated)
    ```
    """
    if not isinstance(graph, Graph):
        raise ValueError(
            "`graph` must be the `tfprune.Graph` of a model with gates. Received: "
            f"{graph!r}. Make it once, by `graph = tfprune.Graph(model)`."
        )
    if not has_gates(graph.model):
        raise ValueError(
            "`graph` must be of a model with gates, and there are none to close. "
            f"Received: the graph of {graph.model.name!r}. Pass that of "
            "`tfprune.prune_wrap(model)`, or use `tfprune.apply_masks`."
        )
    _check_gated(graph, masks)
    if isinstance(graph, WeightGraph):
        set_weight_masks(graph, masks)
        return
    kept = graph.kept(masks)
    for variable, labels in gate_masks(graph):
        variable.assign(kept(labels))


def _check_gated(graph: Graph, masks: Mapping) -> None:
    """Raises unless all that masks close has gates, or is closed without."""
    graph.check(masks)
    gated = gated_entries(graph)
    bare = {name for name, mask in masks.items() if not np.all(mask | gated[name])}
    alive = _alive(graph) if bare else {}
    bare = [k for k in bare if not np.all(masks[k] | gated[k] | ~alive[k])]
    if bare:
        raise ValueError(
            f"`masks` must close what has gates only. Received: {sorted(bare)[:8]} "
            f"have none of unit {graph.unit!r} in {graph.model.name!r}. Wrap these "
            "layers too, or take a graph of what its gates close: `Graph(model)` for "
            'channels, `Graph(model, unit="weight")` for single weights.'
        )


def gated_entries(graph: Graph) -> dict[str, np.ndarray]:
    """Returns, for every group, which of its entries a gate can close."""
    if isinstance(graph, WeightGraph):
        return {
            group.name: np.full(group.size, graph.kernels[group.name].gate is not None)
            for group in graph.groups
        }
    gated = np.zeros(graph.num_units + 1, bool)
    for _, labels in gate_masks(graph):
        gated[graph.units(labels)] = True
    return graph.masks_of(gated)


def gate_masks(graph: Graph) -> list:
    """Returns `(mask variable, labels)` of every gate in the graph's model."""
    own = set()
    for call in graph.calls:
        if isinstance(call.operation, ChannelGate):
            masks = [call.operation.output_mask, *call.operation.input_masks]
            own.update(id(mask.mask) for mask in masks if mask is not None)
    return [(b.variable, b.labels) for b in graph.bindings if id(b.variable) in own]
