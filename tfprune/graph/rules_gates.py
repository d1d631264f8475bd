"""The rule of gates: the rule of the layer inside, with the masks bound to it."""

from dataclasses import replace

import numpy as np

from tfprune.graph.flows import keeps_zero
from tfprune.graph.registry import find_rule, register_rule
from tfprune.graph.trace import Binding, Call
from tfprune.layers import ChannelGate


@register_rule(ChannelGate)
def channel_gate(call: Call, *args, **kwargs):
    gate = call.operation
    out = find_rule(gate.layer).trace(call, *args, **kwargs)
    if out is None:
        return None
    if gate.input_mask is not None:
        mask = gate.input_mask.mask
        read = call.reads[-1]
        call.trace.bind(Binding(call.path, mask, 0, read.labels, read=True))
        call.reads[-1] = replace(read, closed=lambda: ~mask.numpy())
    if gate.output_mask is not None:
        labels = out.labels[out.channel_axis] if out.labeled_axes else None
        for variable in (gate.output_mask.mask, gate.base, gate.gate):
            if variable is not None:
                call.bind(variable, 0, labels)
    inner = call.zeros
    call.zeros = lambda zeros: _gate_zeros(gate, inner, zeros)
    return out


def _gate_zeros(gate: ChannelGate, inner, zeros):
    """A channel is zero where the gate is closed, or where the layer makes it so."""
    if gate.input_mask is not None:
        # A grouped kernel reads every group with the same rows.
        closed = ~gate.input_mask.mask.numpy()
        zeros = None if zeros is None else np.resize(closed, zeros.shape) | zeros
    found = None if inner is None else inner(zeros)
    activation = getattr(gate.layer, "activation", None)
    if gate.output_mask is None or not (activation is None or keeps_zero(activation)):
        return found
    closed = gate.factors().numpy() == 0
    return closed if found is None else closed | found
