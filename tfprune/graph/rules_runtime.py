"""Rules of runtime gates, of what they and agents read, and of deployed layers."""

import functools

import numpy as np

from tfprune.graph.call import Binding, Call, Tensor
from tfprune.graph.registry import register_rule
from tfprune.layers import RuntimeGate
from tfprune.layers.one_image import Buckets
from tfprune.layers.runtime_conv import RuntimeConv2D, Widen


@register_rule(RuntimeGate)
def runtime_gate(call: Call, x: Tensor, source: Tensor, hidden: Tensor | None = None):
    gate, labels = call.operation, x.labels[-1]
    if gate.selection == "top":
        call.read(gate.phi, 0, source, -1)
        call.bind(gate.phi, 1, labels)
        call.count_macs(gate.phi, ())
    for name in ("stored", "rho", "beta", "order", "trait", "features"):
        variable = getattr(gate, name, None)
        if variable is not None:
            call.bind(variable, 0, labels)
    if gate.selection == "top":
        _tie_blocks(call, labels, gate.block)
    if gate.policy is not None:
        _bind_agent(call, gate, labels, source)
    if gate.has_static_part:
        _count_static_part(call, gate, labels)
    call.constants = functools.partial(_closed, gate)
    return [Tensor(call.outputs[0].shape, x.labels), *call.outputs[1:]]


def _tie_blocks(call: Call, labels, block: int) -> None:
    """Channels of a block stay or go together, so that blocks remain what they are."""
    if labels is not None and block > 1:
        first = np.arange(len(labels)) // block * block
        call.tie(labels, labels[first])


def _bind_agent(call: Call, gate, labels, source: Tensor) -> None:
    """What an agent reads of a layer follows the layer's width."""
    agent, per_network = gate.policy.agent, gate.policy.per_network
    if agent is None or (per_network and gate.number):
        return
    parts = (
        [source.labels[-1], labels] if gate.selection == "top" else [source.labels[-1]]
    )
    sizes = [source.shape[-1], gate.channels]
    read = [
        _kept_labels(call, size) if part is None else part
        for part, size in zip(parts, sizes, strict=False)
    ]
    kernel = agent.encoders[gate.number].kernel
    call.trace.bind(Binding(call.path, kernel, 0, np.concatenate(read), read=True))
    call.count_macs(kernel, ())
    call.count_product([(agent.macs_of_cell, None)])
    call.settings = functools.partial(_settings, call, gate)


def _count_static_part(call: Call, gate, labels) -> None:
    """Counts the static agent's step and the scores of all channels."""
    agent = gate.policy.static_agent
    call.count_macs(agent.encoders[0].kernel, ())
    call.count_product([(agent.macs_of_cell, None)])
    for dense in gate.policy.importance.layers:
        call.count_macs(dense.kernel, [(gate.channels, labels)])


def _kept_labels(call: Call, size: int):
    labels = call.new_labels(size)
    call.lock(labels, f"read by the agent of {call.path!r} and never pruned")
    return labels


def _settings(call: Call, gate, kept) -> dict:
    """The policy is one for all gates, so each says of it what all do."""
    sizes = []
    for encoder in gate.policy.agent.encoders:
        labels = call.trace.labels_of(encoder.kernel, 0)
        sizes.append(int(kept(labels).sum()))
    policy = gate.get_config()["policy"]
    config = {**policy["config"], "state_sizes": sizes}
    return {"policy": {**policy, "config": config}}


def _closed(gate, *known):
    """Zero where nothing is stored, whatever comes in."""
    stored = gate.stored.numpy()
    return np.where(stored, np.nan, 0.0)


# Deployed layers -------------------------------------------------------------------

_DEPLOYED = "read by {!r}, which is deployed and no longer pruned"


@register_rule(RuntimeConv2D)
def runtime_conv(call: Call, x: Tensor, *told: Tensor):
    """Counts what is computed for an image that needs all channels."""
    conv = call.operation
    call.lock(x.labels[-1], _DEPLOYED.format(call.path))
    places = call.outputs[0].shape[1:-1]
    sizes = (*conv.kernel_size, conv.channels, conv.filters, *places)
    call.count_product([(size, None) for size in sizes])
    if conv.choice is not None:
        _count_choice(call, conv.choice)
    return call.outputs


@register_rule(Widen)
def widen(call: Call, *told: Tensor):
    return call.outputs


@register_rule(Buckets)
def buckets(call: Call, source: Tensor, inputs: Tensor | None = None):
    """Counts the widest of the models."""
    from tfprune.graph.graph import Graph

    for x in (source, inputs):
        if x is not None:
            call.lock(x.labels[-1], _DEPLOYED.format(call.path))
    _count_choice(call, call.operation.choice)
    for term in Graph(call.operation.models[-1]).mac_terms:
        sizes = (term.constant, *map(len, term.labels))
        call.count_product([(size, None) for size in sizes])
    return call.outputs


def _count_choice(call: Call, choice) -> None:
    for weight in choice.weights:
        if len(weight.shape) == 2:
            call.count_macs(weight, ())
