"""Where gates go in a model, and where they are."""

from dataclasses import dataclass, field

import numpy as np
from keras import layers

from tfprune.graph.constants import exposed, propagate
from tfprune.graph.flows import keeps_zero
from tfprune.graph.graph import Graph
from tfprune.graph.rules_layers import channel_axis
from tfprune.layers import GATED_TYPES, ChannelGate
from tfprune.layers.swapping import attribute_of
from tfprune.patterns import matches


@dataclass(frozen=True, eq=False)
class Member:
    """A layer that carries units on its output channels, one of a group's.

    Attributes:
        path: path of the layer.
        layer: the layer, or the gate around it.
        labels: the label of every output channel.
        axis: the axis of the output that the channels lie on.
    """

    path: str
    layer: object
    labels: np.ndarray = field(repr=False)
    axis: int


def gated_members(graph: Graph) -> list[Member]:
    """Returns the layers with a gate on their output; without gates, those to gate.

    Every BatchNormalization of prunable channels is one, and layers that no
    normalization follows. Layer paths are the same with gates and without.

    Args:
        graph: `Graph` of a model with or without gates.
    """
    gates = {
        id(call.operation)
        for call in graph.calls
        if isinstance(call.operation, ChannelGate)
    }
    places = None if gates else GatePlaces(graph).outputs
    members: dict[int, Member] = {}
    for call in graph.calls:
        operation, out = call.operation, call.outputs[0] if call.outputs else None
        if gates:
            is_member = id(operation) in gates and operation.output_mask is not None
        else:
            is_member = id(operation) in places
        if is_member and out.channel_axis is not None:
            labels = out.labels[out.channel_axis]
            found = Member(call.path, operation, labels, out.channel_axis)
            members.setdefault(id(operation), found)
    return list(members.values())


class GatePlaces:
    """Where gates go.

    Attributes:
        outputs: `{id(operation): labels}` of the channels it makes.
        inputs: `{id(operation): {"attribute:axis": labels}}` of what it reads.
    """

    def __init__(self, graph: Graph):
        self._graph = graph
        self._maker = {id(t): call for call in graph.calls for t in call.outputs}
        self.outputs: dict[int, np.ndarray] = {}
        self.inputs: dict[int, dict[str, np.ndarray]] = {}
        for call in graph.calls:
            if isinstance(call.layer, layers.BatchNormalization):
                self._gate_output(call)
        for call, read in self._exposed_reads():
            self._gate_makers(read.x, set())
        for call, read in self._exposed_reads():
            name = attribute_of(call.layer, read.variable)
            if name is not None:
                own = self.inputs.setdefault(id(call.operation), {})
                own[f"{name}:{read.axis}"] = read.labels

    def has_gate(self, call) -> bool:
        return id(call.operation) in self.outputs or id(call.operation) in self.inputs

    def restrict(self, patterns: list[str]) -> None:
        """Keeps only gates whose layer matches; gates layers that were not chosen."""
        chosen = {}
        for pattern in patterns:
            calls = [
                call
                for call in self._graph.calls
                if matches(call.path, pattern) and isinstance(call.layer, GATED_TYPES)
            ]
            if not calls:
                raise ValueError(
                    f"`layers`: the path pattern {pattern!r} matches no layer that can "
                    f"be gated. Layers are: {', '.join(self._graph.layers[:8])}, ..."
                )
            chosen.update({id(call.operation): call for call in calls})
        for call in chosen.values():
            self._gate_output(call)
        self.outputs = {k: v for k, v in self.outputs.items() if k in chosen}
        self.inputs = {k: v for k, v in self.inputs.items() if k in chosen}

    def _prunable(self, labels) -> np.ndarray:
        return self._graph.prunable(labels)

    def _gate_output(self, call) -> None:
        out = call.outputs[0]
        if out.channel_axis != _own_axis(call):
            return
        labels = out.labels[out.channel_axis]
        if self._prunable(labels).any():
            self.outputs[id(call.operation)] = labels

    def _exposed_reads(self) -> list:
        """Returns (call, read) where closed gates would still let something through."""
        closed = {
            id(call): self._prunable(self.outputs[id(call.operation)])
            for call in self._graph.calls
            if id(call.operation) in self.outputs and _closes(call.layer)
        }
        known = propagate(self._graph, closed)
        return [
            (call, read)
            for call in self._graph.calls
            for read in call.reads
            if exposed(self._graph, read, known).any()
        ]

    def _gate_makers(self, tensor, seen: set) -> None:
        """Walks back from a tensor and gates the first layers that can be gated."""
        if id(tensor) in seen or id(tensor) not in self._maker:
            return
        seen.add(id(tensor))
        call = self._maker[id(tensor)]
        if isinstance(call.layer, GATED_TYPES):
            self._gate_output(call)
            return
        for x in call.inputs:
            if x.labeled_axes:
                self._gate_makers(x, seen)


def _own_axis(call) -> int:
    """Returns the axis of what a layer makes that its scales or filters lie along."""
    layer, rank = call.layer, len(call.outputs[0].shape)
    if isinstance(layer, layers.BatchNormalization):
        return layer.axis % rank
    return channel_axis(layer, rank)


def _closes(layer) -> bool:
    activation = getattr(layer, "activation", None)
    return activation is None or keeps_zero(activation)
