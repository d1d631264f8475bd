"""The scale factors of a model, and which of them a sparsity regularizer acts on."""

from collections import Counter

import keras
import numpy as np

from tfprune.graph.gates import GatePlaces, Member
from tfprune.graph.graph import Graph
from tfprune.graph.rules_layers import channel_axis
from tfprune.layers import GATED_TYPES, ChannelGate
from tfprune.layers.kernels import DEPTHWISE, altered_kernel

_PASSING = ("Dropout", "Identity", "SpatialDropout1D", "SpatialDropout2D")


def scale_variable(layer):
    """Returns the trainable scale of a layer's output channels, None if it has none."""
    if isinstance(layer, ChannelGate):
        return None if layer.output_mask is None else layer.gate_variable
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.gamma
    return None


def scaled_members(graph: Graph) -> list[Member]:
    """Returns the layers at which prunable channels have a scale, or would get one.

    Those are the layers with gates, every BatchNormalization of prunable channels, and
    layers that no normalization follows.
    """
    places, found = GatePlaces(graph).outputs, {}
    for call in graph.calls:
        operation = call.operation
        is_gate = isinstance(operation, ChannelGate) and operation.output_mask
        if not (is_gate or id(operation) in places) or len(call.outputs) != 1:
            continue
        axis = call.outputs[0].channel_axis
        if axis is not None:
            labels = call.outputs[0].labels[axis]
            found.setdefault(id(operation), Member(call.path, operation, labels, axis))
    return list(found.values())


def normalized_directly(graph: Graph) -> list[tuple]:
    """Returns `(call, call of its normalization)` of layers that nothing else reads.

    A scale per channel can move from the one to the other where the activation of the
    convolution or dense layer is linear: no layer and no output of the model sees what
    lies between them.
    """
    maker = {id(x): call for call in graph.calls for x in call.outputs}
    readers = Counter(id(x) for call in graph.calls for x in call.inputs)
    readers.update(id(x) for x in graph.outputs)
    times = Counter(id(call.operation) for call in graph.calls)
    found = []
    for call in graph.calls:
        if not isinstance(call.layer, keras.layers.BatchNormalization):
            continue
        x = call.inputs[0]
        before = maker.get(id(x))
        if (
            before is not None
            and isinstance(before.layer, GATED_TYPES)
            and not isinstance(before.layer, keras.layers.BatchNormalization)
            and readers[id(x)] == 1
            and times[id(call.operation)] == times[id(before.operation)] == 1
            and call.layer.axis % len(x.shape)
            == channel_axis(before.layer, len(x.shape))
        ):
            found.append((before, call))
    return found


def why_not_folded(layer, normalization) -> str | None:
    """Returns why a normalization cannot move into the layer right before it, or None.

    Args:
        layer: convolution or dense layer.
        normalization: BatchNormalization behind it.
    """
    if type(normalization) is not keras.layers.BatchNormalization:
        return f"its normalization is a {type(normalization).__name__}"
    if layer.activation not in (None, keras.activations.linear):
        return "its activation comes before its normalization"
    return altered_kernel(layer)


class Roles:
    """What the layers with scales are in their network, by its structure alone.

    Args:
        graph: the `Graph`.
    """

    def __init__(self, graph: Graph):
        self._calls = list(graph.calls)
        self._maker = {id(x): call for call in self._calls for x in call.outputs}
        self._readers: dict[int, list] = {}
        for call in self._calls:
            for x in call.inputs:
                self._readers.setdefault(id(x), []).append(call)
        self._first = {}
        for call in self._calls:
            self._first.setdefault(call.path, call)
        self._with_kernels = {term.path for term in graph.mac_terms}
        self._adds = any(_is_addition(call) for call in self._calls)

    def maker(self, path: str):
        """Returns the call whose kernel makes the channels that a layer scales."""
        call = self._first[path]
        while call is not None and not self._has_kernel(call):
            if len(call.inputs) != 1:
                return None
            call = self._maker.get(id(call.inputs[0]))
        return call

    def is_depthwise(self, path: str) -> bool:
        """Whether the layer's channels are those of the layer before, one by one."""
        maker = self.maker(path)
        return maker is not None and isinstance(maker.layer, DEPTHWISE)

    def is_regularized(self, path: str) -> bool:
        """Whether a sparsity regularizer acts on the layer's scales by default."""
        if self.is_depthwise(path):
            return False
        if not self._adds:
            return True
        return not (
            self._is_stem(path) or self._is_head(path) or self._is_projection(path)
        )

    def _is_stem(self, path: str) -> bool:
        """Whether it scales what the first convolutions make of the input."""
        maker = self.maker(path)
        return maker is not None and not any(
            map(self._has_kernel, self._upstream(maker))
        )

    def _is_head(self, path: str) -> bool:
        """Whether only the last layers with weights read it, and no addition."""
        after = self._downstream(self._first[path])
        if any(_is_addition(call) for call in after):
            return False
        readers = filter(self._has_kernel, after)
        later = (call for reader in readers for call in self._downstream(reader))
        return not any(map(self._has_kernel, later))

    def _is_projection(self, path: str) -> bool:
        """Whether it ends a branch or a bottleneck: 1x1, and no activation behind."""
        maker = self.maker(path)
        if maker is None or not _is_linear_pointwise(maker.layer):
            return False
        pending, seen = [self._first[path]], set()
        while pending:
            for x in pending.pop().outputs:
                for reader in self._readers.get(id(x), ()):
                    if _is_addition(reader) or self._has_kernel(reader):
                        return True
                    if id(reader) not in seen and _passes(reader.layer):
                        seen.add(id(reader))
                        pending.append(reader)
        return False

    def _has_kernel(self, call) -> bool:
        return call.path in self._with_kernels

    def _upstream(self, call) -> list:
        return _reached(call, self._makers_of)

    def _downstream(self, call) -> list:
        return _reached(call, self._readers_of)

    def _makers_of(self, call) -> list:
        return [self._maker[id(x)] for x in call.inputs if id(x) in self._maker]

    def _readers_of(self, call) -> list:
        return [r for x in call.outputs for r in self._readers.get(id(x), ())]


def _reached(call, step) -> list:
    """Returns all calls that repeated steps from a call lead to."""
    seen, pending = {}, [call]
    while pending:
        for each in step(pending.pop()):
            if id(each) not in seen:
                seen[id(each)] = each
                pending.append(each)
    return list(seen.values())


def _is_addition(call) -> bool:
    labeled = [x for x in call.inputs if x.channel_axis is not None]
    return type(call.layer).__name__ == "Add" and len(labeled) > 1


def _is_linear_pointwise(layer) -> bool:
    size = getattr(layer, "kernel_size", None)
    return (
        size is not None and set(np.ravel(size).tolist()) == {1} and _is_linear(layer)
    )


def _passes(layer) -> bool:
    return type(layer).__name__ in _PASSING or _is_linear(layer)


def _is_linear(layer) -> bool:
    return getattr(layer, "activation", None) is keras.activations.linear
