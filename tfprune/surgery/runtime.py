"""Runtime gates into a model."""

import warnings

import keras
import numpy as np

from tfprune.checks import check_integer, check_number
from tfprune.graph import Graph
from tfprune.graph.runtime_places import runtime_places
from tfprune.layers import RuntimeGate, RuntimePolicy
from tfprune.patterns import as_patterns
from tfprune.surgery.initializers import copy_initializers
from tfprune.surgery.rebuild import (
    Rebuilder,
    copy_operation_like,
    copy_state,
)


def wrap_runtime(
    model,
    kind=RuntimeGate,
    layers=None,
    keep_ratio=1.0,
    runtime_ratio=1.0,
    agent="gaussian",
    per_network=False,
    groups=None,
    **arguments,
) -> keras.Model:
    """Returns a model with `RuntimeGate`s behind its convolutions.

    Args:
        model: Functional or Sequential model without gates; not changed.
        kind: `RuntimeGate`, or a class that derives from it.
        layers: path patterns of convolutions. By default all whose channels are
            theirs alone.
        keep_ratio, runtime_ratio: of `RuntimeGate`.
        agent, per_network, groups: of `RuntimePolicy`; without an agent every image
            keeps `keep_ratio` of every layer. Agents that choose groups, 4 by default,
            go by what a group costs them, not by `keep_ratio`.
        **arguments: `block`, `selection` and `rectify` of `RuntimeGate`.

    Raises:
        ValueError: if there is no place for a gate, or arguments do not go together.
    """
    check_number("keep_ratio", keep_ratio, "(0, 1]")
    check_number("runtime_ratio", runtime_ratio, "[0, 1]")
    if groups is not None:
        check_integer("groups", groups, 1)
    arguments.update(keep_ratio=keep_ratio, runtime_ratio=runtime_ratio)
    _check_together(agent, per_network, groups, arguments)
    is_top = arguments.get("selection", "top") == "top"
    graph = Graph(model)
    patterns = None if layers is None else as_patterns("layers", layers)
    places, refused = runtime_places(graph, patterns)
    if agent is not None and per_network and patterns is None and is_top:
        # The first convolution reads the image, of which a mean says little.
        places = places[1:]
    if not places:
        raise ValueError(
            f"Model {model.name!r} has no convolutions that can be pruned at run time. "
            f"Why: {refused}"
        )
    if is_top:
        _warn_of_lost(places)
    if agent is not None:
        groups = 4 if groups is None else groups
        settings = {"agent": agent, "per_network": per_network, "groups": groups}
        arguments["policy"] = _policy(
            places, is_top, keep_ratio, runtime_ratio, settings
        )
    return _Wrapping(graph, places, kind, arguments).model


def _check_together(agent, per_network, groups, arguments) -> None:
    """Raises if arguments do not go together, or one of them would go unheeded."""
    keep_ratio, runtime_ratio = arguments["keep_ratio"], arguments["runtime_ratio"]
    is_prefix = arguments.get("selection") == "prefix"
    if agent is None and runtime_ratio < 1:
        raise ValueError(
            "Pruning that is in part static needs agents. Received: agent=None, "
            f"runtime_ratio={runtime_ratio}. Use agent='gaussian' or runtime_ratio=1."
        )
    if runtime_ratio < 1 and is_prefix:
        raise ValueError(
            "The first channels are the same for all images already. Received: "
            f"selection='prefix', runtime_ratio={runtime_ratio}. Use runtime_ratio=1."
        )
    if agent == "groups" and keep_ratio != 1:
        raise ValueError(
            "Agents that choose groups go by what each costs them, the `penalty` of "
            "`PolicyTraining`, and by no `keep_ratio`. Received: agent='groups', "
            f"keep_ratio={keep_ratio}. Leave `keep_ratio` out, or use agent='gaussian'."
        )
    if agent != "groups" and groups is not None:
        raise ValueError(
            "`groups` is for agents that choose groups. Received: "
            f"agent={agent!r}, groups={groups}. Use agent='groups', or leave it out."
        )
    if agent is None and per_network:
        raise ValueError(
            "`per_network` says how often agents decide. Received: agent=None, "
            "per_network=True. Use agent='gaussian' or 'groups', or leave it out."
        )
    if is_prefix and arguments.get("rectify"):
        raise ValueError(
            "`rectify` is for predictions, of which the first channels have none. "
            "Received: selection='prefix', rectify=True. Leave `rectify` out, or use "
            "selection='top'."
        )


def without_runtime_gates(model) -> keras.Model:
    """Returns a copy in which every gate lets everything through, as it is."""

    def make(operation, path):
        if isinstance(operation, RuntimeGate):
            return keras.layers.Identity(name=operation.name)
        return copy_operation_like(operation)

    def rewrite(node, args, kwargs):
        return (
            (args[:1], {})
            if isinstance(node.operation, RuntimeGate)
            else (args, kwargs)
        )

    def after(node, outputs, tensors):
        is_gate = isinstance(node.operation, RuntimeGate)
        return (outputs,) * len(node.outputs) if is_gate else outputs

    rebuilder = Rebuilder(make, rewrite, after=after)
    new = rebuilder.model(model)
    for old, twin in rebuilder.pairs:
        if not isinstance(old, RuntimeGate):
            copy_state(old, twin)
    return new


def _warn_of_lost(places) -> None:
    """Warns of what held scales and shifts that gates take over."""
    norms = [place.normalization for place in places if place.normalization is not None]
    names = [
        norm.path
        for norm in norms
        for variable in (norm.layer.gamma, norm.layer.beta)
        if variable is not None and (variable.regularizer or variable.constraint)
    ]
    if names:
        warnings.warn(
            "Gates take over scales and shifts, but not their regularizers and "
            f"constraints. Received: {list(dict.fromkeys(names))}, which have some. To "
            "keep them, set those of `rho` and `beta` of the gates, such as "
            "`gate.rho.regularizer`, after wrapping and after loading.",
            stacklevel=4,
        )


def _policy(places, is_top, keep_ratio, runtime_ratio, settings):
    read = np.array([place.convolution.inputs[0].shape[-1] for place in places])
    made = np.array([place.convolution.outputs[0].shape[-1] for place in places])
    sizes = read + made if is_top else read
    if settings["per_network"]:
        sizes = sizes[:1] if is_top else made[:1]
    widths = (read + made) / (read + made).max()
    return RuntimePolicy(
        sizes.tolist(),
        widths.tolist(),
        keep_ratio,
        runtime_ratio,
        name="runtime_policy",
        **settings,
    )


class _Wrapping:
    """One run of the rebuilder that puts gates in."""

    def __init__(self, graph: Graph, places: list, kind: type, arguments: dict):
        self._kind, self._arguments = kind, arguments
        self._has_policy = arguments.get("policy") is not None
        # Gates that multiply take the scale and shift of a normalization over.
        self._takes_over = arguments.get("selection", "top") == "top"
        self._places = {id(place.last.operation): place for place in places}
        self._norms = {
            id(place.normalization.operation)
            for place in places
            if place.normalization is not None and self._takes_over
        }
        self._gates: dict[int, RuntimeGate] = {}
        self._hidden = None
        rebuilder = Rebuilder(self._make, after=self._gated)
        self.model = rebuilder.model(graph.model)
        pairs = {id(old): (old, new) for old, new in rebuilder.pairs}
        for old, new in rebuilder.pairs:
            if id(old) in self._norms:
                copy_initializers(old, new)
            else:
                copy_state(old, new)
        for key, gate in self._gates.items():
            if self._takes_over:
                self._hand_over(self._places[key], gate, pairs)

    def _make(self, operation, path):
        plain = {"scale": False, "center": False}
        return copy_operation_like(
            operation, plain if id(operation) in self._norms else None
        )

    def _gated(self, node, outputs, tensors):
        place = self._places.get(id(node.operation))
        if place is None:
            return outputs
        maker = place.convolution.operation
        number = len(self._gates)
        gate = self._kind(name=f"{maker.name}_gate", number=number, **self._arguments)
        self._gates[id(node.operation)] = gate
        source = tensors[id(place.convolution.node.input_tensors[0])]
        if gate.looks_back:
            source = outputs
        if not self._has_policy:
            return gate(outputs, source)
        if self._hidden is None:
            outputs, self._hidden = gate(outputs, source)
        else:
            outputs, self._hidden = gate(outputs, source, self._hidden)
        return outputs

    def _hand_over(self, place, gate, pairs) -> None:
        """Gives a gate the scale and shift of the normalization; no output changes."""
        if place.normalization is None:
            return
        old, norm = pairs[id(place.normalization.operation)]
        maker = pairs[id(place.convolution.operation)][1]
        signs = np.ones(gate.channels, "float32")
        if old.gamma is not None:
            gamma = old.gamma.numpy()
            # The channels that matter most are those with the largest scales.
            signs = np.where(gamma < 0, -1, 1).astype("float32")
            gate.rho.assign(gamma * signs)
        if old.beta is not None:
            gate.beta.assign(old.beta)
        maker.kernel.assign(maker.kernel * signs)
        if maker.bias is not None:
            maker.bias.assign(maker.bias * signs)
        # Beside the mean and the variance those of a renormalization.
        for variable in norm.variables:
            value = getattr(old, variable.name)
            is_mean = variable.name.endswith("mean")
            variable.assign(value * signs if is_mean else value)
