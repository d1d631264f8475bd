"""Sparsity regularizers into a model."""

import glob
import warnings

import keras
import numpy as np

from tfprune.constraints import Clip
from tfprune.graph import Graph
from tfprune.graph.scales import (
    Roles,
    normalized_directly,
    scale_variable,
    scaled_members,
)
from tfprune.layers import GATED_TYPES, ChannelGate
from tfprune.layers.channel_gate import scaled_outputs
from tfprune.layers.kernels import DEPTHWISE, SEPARABLE, altered_kernel
from tfprune.patterns import as_patterns, matches
from tfprune.regularizers import Beside, OverScales, Share, SharedTerm
from tfprune.surgery.rebuild import copy_model
from tfprune.surgery.wrap import prune_wrap


def regularize(model: keras.Model, regularizer, layers=None) -> keras.Model:
    """Returns a model that computes the same and trains with a sparsity regularizer.

    A regularizer over scales (`Polarization`, `NetworkSlimming`, `HoyerSquare`) acts
    on the scales of batch normalizations, and on a `ChannelGate` where a layer has
    none, all together. By default these are the scales of all prunable channels, but
    not those of depthwise convolutions, which follow the layer before; and in networks
    with additions neither those of the first and last convolutions nor those behind a
    1x1 convolution that ends a branch or a bottleneck, without activation.

    `Polarization` also holds every scale of the model in `[0, upper]`. Negative scales
    of a trained model are made positive, by turning the sign of the filter, its bias
    and the moving mean: no output changes.

    Any other Keras regularizer, such as `GroupHoyerSquare`, goes on the kernels of the
    layers that make prunable channels.

    `strip`, `compact` and `export` return models without it.

    Args:
        model: Functional, Sequential or subclassed model, without gates or with all
            that `prune_wrap` makes; not changed.
        regularizer: a Keras regularizer, see `tfprune.regularizers`.
        layers: path patterns of the layers whose scales or kernels it acts on, such as
            `["stage1/*"]`. By default as described above.

    Returns:
        A new model, uncompiled.

    Raises:
        ValueError: if the model has such a regularizer already, there is nothing for
            it to act on, or some layers have gates and others would need one.

    Source: Zhuang et al., "Neuron-level structured pruning using polarization
    regularizer", 2020, section 3 and appendix.

    Example:

    ```python
    model = tfprune.regularize(model, tfprune.regularizers.Polarization(1.2, 1e-4))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    model.fit(train, epochs=100)
    masks = tfprune.select(tfprune.Graph(model), "scale", threshold="valley")
    small = tfprune.compact(model, masks)
    ```
    """
    if not isinstance(regularizer, keras.regularizers.Regularizer):
        raise ValueError(
            "`regularizer` must be a Keras regularizer, such as "
            "`tfprune.regularizers.Polarization(t=1.2, strength=1e-4)`. "
            f"Received: {regularizer!r}"
        )
    graph = Graph(model)
    patterns = None if layers is None else as_patterns("layers", layers)
    if isinstance(regularizer, OverScales):
        return _over_scales(graph, regularizer, patterns)
    return _on_kernels(graph, regularizer, patterns)


def _over_scales(graph: Graph, regularizer: OverScales, patterns) -> keras.Model:
    members = scaled_members(graph)
    _refuse_second(graph, members)
    roles = Roles(graph)
    by_default = {m.path for m in members if roles.is_regularized(m.path)}
    chosen = _chosen(graph, [m.path for m in members], by_default, patterns)
    bare = [m.path for m in members if scale_variable(m.layer) is None]
    bare = [glob.escape(path) for path in bare if path in chosen]
    new = prune_wrap(graph.model, layers=bare) if bare else copy_model(graph.model)
    scales = _Scales(new)
    if regularizer.clips:
        chosen -= scales.make_positive()
        regularizer = scales.clip(regularizer)
    scales.share(regularizer, chosen)
    return new


def _on_kernels(graph: Graph, regularizer, patterns) -> keras.Model:
    made = {
        b.path
        for b in graph.bindings
        if not b.read and len(b.variable.shape) > 1 and graph.prunable(b.labels).any()
    }
    kernels = {
        call.path: call.layer
        for call in graph.calls
        if call.path in made
        and isinstance(call.layer, GATED_TYPES)
        and not isinstance(call.layer, DEPTHWISE)
    }
    chosen = _chosen(graph, list(kernels), set(kernels), patterns)
    new = copy_model(graph.model)
    # A layer that is called several times has one kernel.
    layers = {call.path: call.layer for call in Graph(new).calls if call.path in chosen}
    for layer in layers.values():
        kernel, name = _kernel_of(layer)
        both = Beside(regularizer, kernel.regularizer)
        kernel.regularizer = both
        setattr(layer, f"{name}_regularizer", both)
    return new


def _kernel_of(layer):
    """Returns the kernel that makes a layer's channels, and its arguments' prefix."""
    if isinstance(layer, SEPARABLE):
        return layer.pointwise_kernel, "pointwise"
    return layer.kernel, "kernel"


def _refuse_second(graph: Graph, members) -> None:
    for member in members:
        found = getattr(scale_variable(member.layer), "regularizer", None)
        if isinstance(found, Share):
            raise ValueError(
                f"Model {graph.model.name!r} has a regularizer over its scales "
                f"already: {type(found.term.regularizer).__name__}, on {member.path!r}"
                " and others. Call `tfprune.strip` first."
            )


def _chosen(graph: Graph, paths: list, by_default: set, patterns) -> set:
    chosen = set(by_default) if patterns is None else set()
    for pattern in patterns or ():
        found = {path for path in paths if matches(path, pattern)}
        if not found:
            raise ValueError(
                f"`layers`: the path pattern {pattern!r} matches no layer that the "
                f"regularizer can act on. Those are: {', '.join(paths[:8])}, ..."
            )
        chosen |= found
    if not chosen:
        raise ValueError(
            f"Model {graph.model.name!r} has nothing for the regularizer to act on. "
            f"Name layers: `layers=`. Can be: {', '.join(paths[:8]) or 'none'}."
        )
    return chosen


class _Scales:
    """The scales of a new model, on the way to being regularized."""

    def __init__(self, model: keras.Model):
        self._model = model
        graph = Graph(model)
        pairs = normalized_directly(graph)
        self._makers = {id(norm.operation): made.layer for made, norm in pairs}
        self._layers = {}
        for call in graph.calls:
            if scale_variable(call.operation) is not None:
                self._layers.setdefault(call.path, call.operation)

    def make_positive(self) -> set:
        """Turns negative scales; returns the paths of layers where it cannot be done.

        Those are out of what is clipped, too: that would change what they compute.
        """
        left = set()
        for path, layer in list(self._layers.items()):
            scale = scale_variable(layer)
            signs = np.where(scale.numpy() < 0, -1, 1).astype("float32")
            if (signs > 0).all():
                continue
            if not _turn(layer, self._maker(layer), signs):
                left.add(path)
                del self._layers[path]
        if left:
            warnings.warn(
                "These layers have negative scales that cannot be turned without a "
                "change to the outputs, as they do not come right behind a layer of "
                f"their own. They are neither regularized nor clipped: {sorted(left)}.",
                stacklevel=4,
            )
        return left

    def _maker(self, layer):
        if isinstance(getattr(layer, "layer", layer), keras.layers.BatchNormalization):
            return self._makers.get(id(layer))
        return layer.layer

    def clip(self, regularizer: OverScales) -> OverScales:
        """Holds all scales in `[0, upper]`; returns the regularizer with its `upper`."""
        variables = [scale_variable(layer) for layer in self._layers.values()]
        largest = max((float(v.numpy().max()) for v in variables), default=0.0)
        upper = regularizer.upper
        if upper is None:
            upper = max(1.0, largest)
            if largest > 1:
                _warn(
                    f"`upper` is {upper:.4g}, the largest scale of the model, and not 1"
                )
        elif largest > upper:
            _warn(
                f"Scales up to {largest:.4g} are above `upper={upper}`: the first step "
                "of training clips them, which changes what the model computes"
            )
        for layer in self._layers.values():
            variable = scale_variable(layer)
            _set(layer, "constraint", Clip(0.0, upper, variable.constraint))
        config = {**regularizer.get_config(), "upper": upper}
        return type(regularizer).from_config(config)

    def share(self, regularizer: OverScales, chosen: set) -> None:
        """Gives every chosen layer its share, in the order of the model's weights."""
        place = {id(v): n for n, v in enumerate(self._model.trainable_weights)}
        layers = {path: x for path, x in self._layers.items() if path in chosen}
        frozen = [p for p, x in layers.items() if id(scale_variable(x)) not in place]
        if frozen:
            _warn(f"Frozen scales are not regularized: {sorted(frozen)}")
        layers = [layers[path] for path in layers if path not in frozen]
        layers.sort(key=lambda layer: place[id(scale_variable(layer))])
        if not layers:
            raise ValueError(
                f"Model {self._model.name!r} has no scales that the regularizer can "
                "act on: all are frozen, or negative for good."
            )
        variables = [scale_variable(layer) for layer in layers]
        term = SharedTerm(regularizer, len(layers), variables)
        for index, layer in enumerate(layers):
            own = scale_variable(layer).regularizer
            _set(layer, "regularizer", Share(term, index, own))


def _warn(text: str) -> None:
    warnings.warn(f"{text}.", stacklevel=5)


def _set(layer, kind: str, value) -> None:
    """Sets the regularizer or constraint of a scale, and in what is saved of it."""
    variable = scale_variable(layer)
    setattr(variable, kind, value)
    is_own = isinstance(layer, ChannelGate) and variable is layer.gate
    owner, name = (
        (layer, "gate") if is_own else (getattr(layer, "layer", layer), "gamma")
    )
    setattr(owner, f"{name}_{kind}", value)


def _turn(layer, maker, signs) -> bool:
    """Turns the sign of channels inside a layer and of its scale; returns if it can."""
    norm = getattr(layer, "layer", layer)
    is_norm = isinstance(norm, keras.layers.BatchNormalization)
    shift = norm.beta if is_norm and norm is not layer else None
    if getattr(layer, "base", None) is not None:
        layer.base.assign(layer.base * signs)
    else:
        if is_norm and not _is_linear(maker) or altered_kernel(maker) is not None:
            return False
        for name, value in scaled_outputs(maker, signs).items():
            getattr(maker, name).assign(value)
        if is_norm:
            norm.moving_mean.assign(norm.moving_mean * signs)
            if norm.renorm:
                norm.renorm_mean.assign(norm.renorm_mean * signs)
    if shift is not None:
        shift.assign(shift * signs)
    scale = scale_variable(layer)
    scale.assign(scale * signs)
    return True


def _is_linear(maker) -> bool:
    return maker is not None and maker.activation in (None, keras.activations.linear)
