"""The rule of gates: the rule of the layer inside, with the masks bound to it."""

import functools
from dataclasses import replace

import keras
import numpy as np

from tfprune.graph.call import Binding, Call, variable_of
from tfprune.graph.flows import only_zeros, run_on_constants
from tfprune.graph.registry import find_rule, register_rule
from tfprune.layers import ChannelGate


@register_rule(ChannelGate)
def channel_gate(call: Call, *args, **kwargs):
    gate = call.operation
    out = find_rule(gate.layer).trace(call, *args, **kwargs)
    if out is None:
        return None
    for (name, axis), mask in gate.input_places.items():
        _close_reads(call, variable_of(gate.layer, name), axis, mask.mask)
    if gate.output_mask is not None:
        labels = out.labels[out.channel_axis] if out.labeled_axes else None
        for variable in (gate.output_mask.mask, gate.base, gate.gate):
            if variable is not None:
                call.bind(variable, 0, labels)
    inner = call.constants
    call.constants = lambda *known: _gate_constants(gate, inner, known)
    return out


def _close_reads(call: Call, variable, axis: int, mask) -> None:
    """Binds a mask to the rows it closes."""
    for number, read in enumerate(call.reads):
        if read.variable is variable and read.axis == axis:
            call.trace.bind(Binding(call.path, mask, 0, read.labels, read=True))
            closed = functools.partial(_closed_rows, mask, read.closed)
            call.reads[number] = replace(read, closed=closed)


def _closed_rows(mask, before):
    closed = ~mask.numpy()
    return closed if before is None else closed | before()


def _gate_constants(gate: ChannelGate, inner, known):
    """Zero where the layer makes it so; where the gate is closed, what it makes of 0."""
    found = only_zeros(None if inner is None else inner(*known))
    if gate.output_mask is None:
        return found
    closed = gate.factors().numpy() == 0
    if gate.base is not None:
        shift = gate.layer.beta
        # A normalization of no scale and no shift, when it was wrapped or since.
        closed |= (gate.base.numpy() == 0) & (shift is None or shift.numpy() == 0)
    activation = getattr(gate.layer, "activation", None) or keras.activations.linear
    behind = run_on_constants(activation, np.zeros(len(closed)))
    if behind is None:
        return found
    open_ones = np.nan if found is None else found
    return np.where(closed, behind, open_ones)
