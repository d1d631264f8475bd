"""The rule of gates: the rule of the layer inside, with the masks bound to it."""

from dataclasses import replace

from tfprune.graph.flows import keeps_zero
from tfprune.graph.registry import find_rule, register_rule
from tfprune.graph.trace import Call
from tfprune.layers import ChannelGate


@register_rule(ChannelGate)
def channel_gate(call: Call, *args, **kwargs):
    gate = call.operation
    call.operation = gate.layer
    out = find_rule(gate.layer).trace(call, *args, **kwargs)
    call.operation = gate
    if out is None:
        return None
    if gate.input_mask is not None:
        read = call.reads[-1]
        call.bind(gate.input_mask.mask, 0, read.labels)
        call.reads[-1] = replace(read, closed=lambda: ~gate.input_mask.mask.numpy())
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
        closed = ~gate.input_mask.mask.numpy()
        zeros = closed if zeros is None else closed | zeros
    found = None if inner is None else inner(zeros)
    activation = getattr(gate.layer, "activation", None)
    if gate.output_mask is None or not (activation is None or keeps_zero(activation)):
        return found
    closed = gate.factors().numpy() == 0
    return closed if found is None else closed | found
