"""Gates into a model and out of it again."""

import functools
from collections.abc import Callable

import keras
import numpy as np

from tfprune.graph import Graph
from tfprune.graph.following import OwnWeight
from tfprune.graph.gates import GatePlaces
from tfprune.graph.remaking import argument_names
from tfprune.layers import (
    ChannelGate,
    ChannelMask,
    KernelGate,
    RuntimeGate,
    SwapWrapper,
    TrainableChannelMask,
    TrainableMask,
)
from tfprune.patterns import as_patterns
from tfprune.surgery.added import copy_terms, leave_off_added
from tfprune.surgery.gates import has_gates, has_runtime_gates
from tfprune.surgery.initializers import copy_initializers
from tfprune.surgery.rebuild import (
    Rebuilder,
    copy_operation_like,
    copy_state,
)
from tfprune.surgery.runtime import wrap_runtime
from tfprune.surgery.weights import built_copy, wrap_kernels

_UNITS = ("weight", "channel")
# Arguments of gates that wrapping itself gives them.
_GIVEN = {"layer", "mask", "input_masks", "kernels"}
_GIVEN_AT_RUN_TIME = {"model", "kind", "layers", "policy", "number", "total"}


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

    Gates on single weights, `WeightMask` and `TrainableMask`, go around every layer
    with kernels, of whatever type. `TrainableMask` with `unit="channel"` makes gates of
    channels instead, whose masks are trained.

    `RuntimeGate`, which chooses channels image by image, goes behind every convolution
    whose channels are its own; those of residual streams are for static pruning, and so
    are those with an activation before their BatchNormalization. Its `keep_ratio` takes
    effect at once, and so do its agents, which every gate shares: `agent="gaussian"`,
    `"groups"`, or None for one ratio everywhere, and `per_network=True` for one
    decision for each image.

    Args:
        model: Functional, Sequential or subclassed model without gates; not changed.
        gate: gate class, or callable `gate(layer) -> layer` that gets a built copy of
            each layer.
        layers: path patterns of the layers to wrap, such as `["stage1/*"]`, for
            weights also of kernels, such as `["*/recurrent_kernel"]`. By default
            every layer that needs a gate.
        **gate_arguments: passed to `gate`.

    Returns:
        A new model, uncompiled.

    Raises:
        ValueError: if the model has gates already or nothing to gate, a pattern
            matches no layer that can be gated, or the gate knows no such argument.

    Example:

    ```python
    model = tfprune.prune_wrap(base, tfprune.layers.ChannelGate)
    model.compile("sgd", "sparse_categorical_crossentropy")
    prune = tfprune.callbacks.PruneToBudget("magnitude", budget)
    model.fit(x, y, epochs=20, callbacks=[prune])
    ```
    """
    if has_gates(model):
        raise ValueError(
            f"Model {model.name!r} has gates already. Call `tfprune.strip` first."
        )
    if has_runtime_gates(model):
        raise ValueError(
            f"Model {model.name!r} has gates already, which decide image by image. "
            "Wrap the model that they were put into."
        )
    _check_arguments(gate, gate_arguments)
    if isinstance(gate, type) and issubclass(gate, RuntimeGate):
        return wrap_runtime(model, gate, layers, **gate_arguments)
    # Of other gates `unit` is an argument of their own.
    is_trainable = gate is TrainableMask
    unit = gate_arguments.pop("unit", "weight") if is_trainable else "weight"
    if isinstance(gate, type) and issubclass(gate, KernelGate) and unit == "weight":
        return wrap_kernels(model, gate, layers, **gate_arguments)
    make_mask = ChannelMask
    if gate is TrainableMask:
        make_mask = functools.partial(TrainableChannelMask, **gate_arguments)
        gate, gate_arguments = ChannelGate, {}
    graph = Graph(model)
    places = GatePlaces(graph)
    if layers is not None:
        places.restrict(as_patterns("layers", layers))
    if not places.outputs and not places.inputs:
        raise ValueError(
            f"Model {model.name!r} has no channels that can be pruned, so there is "
            f"nothing to gate. Why: {graph.locked}"
        )
    return _wrap(graph, places, gate, gate_arguments, make_mask)


def _check_arguments(gate, arguments: dict) -> None:
    if not callable(gate) or isinstance(gate, keras.layers.Layer):
        raise ValueError(
            "`gate` must be a gate class or a callable `gate(layer) -> layer`. "
            f"Received: {gate!r}"
        )
    known, given = argument_names(gate), _GIVEN
    if isinstance(gate, type) and issubclass(gate, RuntimeGate):
        known, given = known + argument_names(wrap_runtime), _GIVEN_AT_RUN_TIME
    known = [name for name in dict.fromkeys(known) if name not in given]
    known += ["unit"] * (gate is TrainableMask)
    if gate is TrainableMask and arguments.get("unit", "weight") not in _UNITS:
        raise ValueError(
            f"`unit` must be one of {_UNITS}. Received: unit={arguments['unit']!r}"
        )
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise ValueError(
            f"{getattr(gate, '__name__', gate)} takes no argument `{unknown[0]}`. "
            f"Its arguments are: {', '.join(known) or 'none'}."
        )


def _wrap(
    graph: Graph, places: GatePlaces, gate, arguments: dict, make_mask: Callable
) -> keras.Model:
    masks: dict[bytes, ChannelMask] = {}

    def shared_mask(labels, path):
        # Layers whose channels are the same units, in the same order, share a mask.
        key = graph.units(labels).tobytes()
        if key not in masks:
            masks[key] = make_mask(len(labels), name=f"{path.replace('/', '_')}_mask")
        return masks[key]

    def make(operation, path):
        output = places.outputs.get(id(operation))
        inputs = places.inputs.get(id(operation), {})
        is_gate = isinstance(gate, type) and issubclass(gate, ChannelGate)
        if output is None and not (inputs and is_gate):
            return copy_operation_like(operation)
        twin = built_copy(operation)
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
        model: Functional, Sequential or subclassed model, with or without gates; not
            changed.

    Returns:
        A new model of plain Keras layers, uncompiled.

    Raises:
        ValueError: if the model has runtime gates.

    Example:

    ```python
    tfprune.strip(model).save("plain.keras")
    ```
    """
    if has_runtime_gates(model):
        raise ValueError(
            f"Model {model.name!r} has runtime gates, which decide image by image, and "
            "no plain model computes that. `tfprune.compact` keeps them, "
            "`tfprune.runtime.deploy` makes them skip work, and `tfprune.export` writes "
            "either."
        )
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
        if isinstance(old, SwapWrapper):
            _fold_gate(old, twin)
        else:
            copy_state(old, twin)
        leave_off_added(twin)
    return new


def _copy_without_gate(operation, counts):
    if not isinstance(operation, ChannelGate):
        inner = operation.layer if isinstance(operation, SwapWrapper) else operation
        return copy_operation_like(inner)
    # A normalization without scale gets one, unless its gate is all open at 1.
    is_norm = isinstance(operation.layer, keras.layers.BatchNormalization)
    needs_none = not is_norm or operation.layer.scale or operation.output_mask is None
    if needs_none or np.all(operation.factors().numpy()[counts(operation)] == 1):
        return copy_operation_like(operation.layer)
    return copy_operation_like(operation.layer, {"scale": True})


def _fold_gate(gate: SwapWrapper, twin) -> None:
    """Gives a plain copy the weights that the gate makes its layer run with."""
    # Products with a mask leave negative zeros, which a sparse file would store.
    values = {key: value + 0.0 for key, value in gate.baked().items()}
    added = len(twin.variables) - len(gate.layer.variables)
    # A scale that the layer did not have comes first among its variables.
    pairs = list(zip(gate.layer.variables, twin.variables[added:], strict=True))
    copy_terms(gate.layer, pairs)
    for old, new in pairs:
        new.assign(values.get(id(old), old))
        if new.trainable != old.trainable:
            new.trainable = old.trainable
    if added:
        twin.gamma.assign(gate.swaps()["gamma"])
    copy_initializers(gate.layer, twin)
