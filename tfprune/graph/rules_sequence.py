"""Rules of recurrent layers and of layers that wrap another one."""

from dataclasses import replace

import numpy as np
from keras import layers

from tfprune.graph.call import Binding, Call, Tensor
from tfprune.graph.flows import concatenate, is_elementwise
from tfprune.graph.nodes import tree
from tfprune.graph.registry import find_rule, register_rule, settings_of
from tfprune.graph.rules_layers import normalize_across


@register_rule(layers.SimpleRNN, layers.GRU, layers.LSTM)
def recurrent(call: Call, x: Tensor, initial_state=None, mask=None):
    layer = call.layer
    if layer.stateful:
        return None
    call.lock_all(x, f"a step axis of {call.path!r}", but=2)
    cell = layer.cell
    call.read(cell.kernel, 0, x, 2)
    units = _recurrence(call, cell)
    outputs = [out.with_labels({-1: units}) for out in call.outputs]
    states = tree.flatten(initial_state) if initial_state is not None else ()
    for state in states:
        call.tie(units, state.labels[-1])
    # The layer reads its own output, step after step.
    call.read(cell.recurrent_kernel, 0, outputs[0], -1)
    for kernel in (cell.kernel, cell.recurrent_kernel):
        call.count_macs(kernel, [(x.shape[1], None)])
    call.settings = lambda kept: (
        {"units": int(kept(units).sum())} if _has(units) else {}
    )
    return outputs


def _has(labels) -> bool:
    return labels is not None


def _recurrence(call: Call, cell):
    """Ties the gates of a recurrent layer: each has one column per unit."""
    kernel, recurrent_kernel, bias = cell.kernel, cell.recurrent_kernel, cell.bias
    size, columns = recurrent_kernel.shape[-2:]
    units = call.trace.labels_of(recurrent_kernel, -2)
    if size == 1:
        return None
    if units is None:
        units = call.new_labels(size)
    gates = np.tile(units, columns // size)
    call.bind(kernel, -1, gates)
    call.bind(recurrent_kernel, -1, gates)
    if bias is not None:
        call.bind(bias, -1, gates)
    # A `SimpleRNN` has no other.
    activations = (cell.activation, getattr(cell, "recurrent_activation", None))
    # States have as many axes as kernels.
    rank = len(kernel.shape)
    if not all(each is None or is_elementwise(each, rank) for each in activations):
        call.lock(units, f"mixed by an activation of {call.path!r}")
    return units


@register_rule(layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
def conv_lstm(call: Call, x: Tensor, initial_state=None, mask=None):
    layer, cell = call.layer, call.layer.cell
    first = layer.data_format == "channels_first"
    if layer.stateful or initial_state is not None or first:
        return None
    axis = len(x.shape) - 1
    call.lock_all(x, f"a spatial axis of {call.path!r}", but=axis)
    call.read(cell.kernel, -2, x, axis)
    units = _recurrence(call, cell)
    outputs = [out.with_labels({-1: units}) for out in call.outputs]
    call.read(cell.recurrent_kernel, -2, outputs[0], -1)
    spatial = [(size, None) for size in _last_map(layer, outputs[0])]
    for kernel in (cell.kernel, cell.recurrent_kernel):
        call.count_macs(kernel, [(x.shape[1], None), *spatial])
    call.settings = lambda kept: (
        {"filters": int(kept(units).sum())} if _has(units) else {}
    )
    return outputs


def _last_map(layer, out: Tensor) -> tuple:
    return out.shape[2:-1] if layer.return_sequences else out.shape[1:-1]


def trace_inner(
    call: Call, inner, inputs: list[Tensor], outputs: list[Tensor], **kwargs
):
    """Traces a layer inside another one; the inner call is returned with its outputs.

    Returns:
        The inner `Call`, or None if the inner layer has no rule.
    """
    rule = find_rule(inner)
    if rule is None:
        return None
    inner_call = replace(
        call, operation=inner, inputs=inputs, outputs=outputs, reads=[], settings=None
    )
    results = rule.trace(inner_call, *inputs, **kwargs)
    if results is None:
        return None
    inner_call.outputs = [results] if isinstance(results, Tensor) else list(results)
    return inner_call


def _with_settings(layer, argument: str, settings: dict) -> dict:
    """Returns the config of a wrapped layer with other constructor arguments."""
    config = layer.get_config()[argument]
    return {**config, "config": {**config["config"], **settings}, "build_config": None}


@register_rule(layers.TimeDistributed)
def time_distributed(call: Call, x: Tensor, mask=None):
    layer, (out,) = call.layer, call.outputs
    call.lock(x.labels[1], f"the step axis of {call.path!r}")
    step = Tensor(_without_step(x.shape), _without_step(x.labels))
    num_terms = len(call.trace.terms)
    inner = trace_inner(call, layer.layer, [step], [Tensor(_without_step(out.shape))])
    if inner is None:
        return None
    terms = call.trace.terms
    terms[num_terms:] = [
        replace(term, constant=term.constant * x.shape[1]) for term in terms[num_terms:]
    ]
    (result,) = inner.outputs
    made = _with_steps(result, x.shape[1])
    # A recurrent layer reads its own outputs too.
    around = {id(step): x, id(result): made}
    call.reads = [
        replace(
            read,
            x=around.get(id(read.x)) or _with_steps(read.x, x.shape[1]),
            x_axis=read.x_axis + 1,
        )
        for read in inner.reads
    ]
    call.unequal = inner.unequal
    # A mask comes as one more input, of which the layer inside knows nothing.
    call.constants = inner.constants and (lambda known, *masks: inner.constants(known))
    call.settings = lambda kept: {
        "layer": _with_settings(layer, "layer", settings_of(inner, kept))
    }
    return made


def _without_step(values: tuple) -> tuple:
    return (values[0], *values[2:])


def _with_steps(step: Tensor, size: int) -> Tensor:
    shape, labels = (None, size, *step.shape[1:]), (None, None, *step.labels[1:])
    return Tensor(shape, labels)


@register_rule(layers.Bidirectional)
def bidirectional(call: Call, x: Tensor, initial_state=None, mask=None):
    layer = call.layer
    if initial_state is not None or layer.return_state or layer.merge_mode is None:
        return None
    (out,) = call.outputs
    width = out.shape[-1] // (2 if layer.merge_mode == "concat" else 1)
    half = Tensor((*out.shape[:-1], width))
    parts = [
        trace_inner(call, inner, [x], [half])
        for inner in (layer.forward_layer, layer.backward_layer)
    ]
    if None in parts:
        return None
    call.reads = [read for part in parts for read in part.reads]
    call.settings = lambda kept: {
        argument: _with_settings(layer, argument, settings_of(part, kept))
        for argument, part in zip(("layer", "backward_layer"), parts, strict=True)
    }
    halves = [part.outputs[0] for part in parts]
    # Keras takes the width of one direction for that of both.
    units = call.tie(*(each.labels[-1] for each in halves))
    if layer.merge_mode == "concat":
        result = concatenate(call, halves, -1)
        call.constants = None
        return result
    return out.with_labels({-1: units})


@register_rule(layers.GroupNormalization)
def group_normalization(call: Call, x: Tensor, **kwargs):
    """Whole norm groups may go: the statistics of the others stay the same."""
    layer = call.layer
    axis = layer.axis % len(x.shape)
    labels = x.labels[axis]
    call.lock_all(x, f"normalized over in {call.path!r}", but=axis)
    if labels is not None and layer.groups == 1:
        normalize_across(call, x, axis)
    elif labels is not None:
        width = len(labels) // layer.groups
        table = labels.reshape(layer.groups, width)
        for column in table.T[1:]:
            call.tie(table[:, 0], column)
        call.settings = lambda kept: {"groups": int(kept(labels).sum()) // width}
    for variable in (layer.gamma, layer.beta):
        if variable is not None:
            call.trace.bind(Binding(call.path, variable, 0, labels, read=False))
    return Tensor(call.outputs[0].shape, x.labels)
