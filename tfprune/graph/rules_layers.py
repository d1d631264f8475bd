"""Rules of the layers that have weights."""

import numpy as np
from keras import layers

from tfprune.graph.call import Binding, Call, Tensor
from tfprune.graph.flows import along, mixed_axes, run_on_constants
from tfprune.graph.nodes import LayerScale
from tfprune.graph.registry import register_rule
from tfprune.graph.sums import constant_sums
from tfprune.layers.kernels import DEPTHWISE, SEPARABLE, TRANSPOSED, altered_kernel


def channel_axis(layer, rank: int) -> int:
    """Returns the channel axis of a layer with a `data_format`, from the left."""
    first = getattr(layer, "data_format", None) == "channels_first"
    return 1 if first else rank - 1


def positions(x: Tensor, axis: int) -> list:
    """Returns size and labels of every axis but the batch and `axis`."""
    axis %= len(x.shape)
    pairs = list(zip(x.shape, x.labels, strict=True))
    return [pair for a, pair in enumerate(pairs) if a not in (0, axis)]


def _contract(call: Call, x: Tensor, kernel, in_axis, out_axis, axis, places):
    """Reads x's channels with one axis of `kernel` and makes those of another."""
    call.read(kernel, in_axis, x, axis)
    made = call.make(kernel, out_axis)
    _finish(call, x, axis, kernel, made, places)
    return made


def _finish(call: Call, x: Tensor, axis, kernel, made, places) -> None:
    """What all contractions do with the channels they make."""
    layer = call.layer
    if layer.bias is not None:
        call.bind(layer.bias, 0, made)
    call.count_macs(kernel, places)
    rank = len(x.shape)
    mixed = () if layer.activation is None else mixed_axes(layer.activation, rank)
    for each in mixed:
        labels = made if each == axis % rank else x.labels[each]
        call.lock(labels, f"mixed by the activation of {call.path!r}")
    if not mixed:
        call.constants = along(x, axis, lambda known: _made(layer, known))


def _made(layer, known):
    """Returns the outputs of a layer that are constant: sums, bias and activation."""
    made = constant_sums(layer, known)
    if layer.bias is not None:
        made = made + layer.bias.numpy()
    if layer.activation is None:
        return made
    computed = run_on_constants(layer.activation, made)
    return None if computed is None else np.where(np.isnan(made), np.nan, computed)


@register_rule(layers.Dense, sizes={"units": ("kernel", -1)})
def dense(call: Call, x: Tensor):
    layer, out = call.layer, call.outputs[0]
    if altered_kernel(layer):
        return None
    made = _contract(call, x, layer.kernel, 0, 1, -1, positions(x, -1))
    return Tensor(out.shape, x.labels).with_labels({-1: made})


@register_rule(
    layers.Conv1D, layers.Conv2D, layers.Conv3D, sizes={"filters": ("kernel", -1)}
)
def conv(call: Call, x: Tensor):
    layer, out = call.layer, call.outputs[0]
    if altered_kernel(layer):
        return None
    axis = channel_axis(layer, len(x.shape))
    call.lock_all(x, f"a spatial axis of {call.path!r}", but=axis)
    contract = _contract if layer.groups == 1 else _contract_groups
    made = contract(call, x, layer.kernel, -2, -1, axis, positions(out, axis))
    return out.with_labels({axis: made})


def _contract_groups(call: Call, x: Tensor, kernel, in_axis, out_axis, axis, places):
    """A grouped convolution: many small groups go as a whole, few large ones thin."""
    layer = call.layer
    groups, width = layer.groups, kernel.shape[in_axis]
    read, made = x.labels[axis], call.make(kernel, out_axis)
    if read is None or made is None:
        call.lock(made, f"the groups of {call.path!r} read channels that are kept")
        call.lock(read, f"read by the groups of {call.path!r}")
    elif groups >= width:
        _tie_rows(call, np.hstack([read.reshape(groups, -1), made.reshape(groups, -1)]))
        call.settings = lambda kept: {"groups": int(kept(read).sum()) // width}
    else:
        _tie_rows(call, read.reshape(groups, -1).T)
        _tie_rows(call, made.reshape(groups, -1).T)
        call.read(kernel, in_axis, x, axis, labels=read[:width])
    _finish(call, x, axis, kernel, made, places)
    return made


def _tie_rows(call: Call, table: np.ndarray) -> None:
    """Ties all labels of each row."""
    for column in table.T[1:]:
        call.tie(table[:, 0], column)


@register_rule(*TRANSPOSED, sizes={"filters": ("kernel", -2)})
def conv_transpose(call: Call, x: Tensor):
    layer, out = call.layer, call.outputs[0]
    axis = channel_axis(layer, len(x.shape))
    call.lock_all(x, f"a spatial axis of {call.path!r}", but=axis)
    # Each input position is multiplied with the whole kernel.
    made = _contract(call, x, layer.kernel, -1, -2, axis, positions(x, axis))
    return out.with_labels({axis: made})


@register_rule(*DEPTHWISE)
def depthwise_conv(call: Call, x: Tensor):
    layer, out = call.layer, call.outputs[0]
    axis = channel_axis(layer, len(x.shape))
    call.lock_all(x, f"a spatial axis of {call.path!r}", but=axis)
    kernel, labels = layer.kernel, x.labels[axis]
    call.bind(kernel, -2, labels)
    made = None if labels is None else np.repeat(labels, kernel.shape[-1])
    _finish(call, x, axis, kernel, made, positions(out, axis))
    return out.with_labels({axis: made})


@register_rule(*SEPARABLE, sizes={"filters": ("pointwise_kernel", -1)})
def separable_conv(call: Call, x: Tensor):
    layer, out = call.layer, call.outputs[0]
    axis = channel_axis(layer, len(x.shape))
    call.lock_all(x, f"a spatial axis of {call.path!r}", but=axis)
    depthwise, pointwise = layer.depthwise_kernel, layer.pointwise_kernel
    multiplier, places = depthwise.shape[-1], positions(out, axis)
    call.read(depthwise, -2, x, axis, adds_up=False)
    between = None if x.labels[axis] is None else np.repeat(x.labels[axis], multiplier)
    call.trace.bind(Binding(call.path, pointwise, -2, between, read=True))
    call.count_macs(depthwise, places)
    made = call.make(pointwise, -1)
    _finish(call, x, axis, pointwise, made, places)
    return out.with_labels({axis: made})


@register_rule(layers.Embedding, sizes={"output_dim": ("embeddings", 1)})
def embedding(call: Call, x: Tensor):
    if altered_kernel(call.layer):
        return None
    made = call.make(call.layer.embeddings, 1)
    return call.outputs[0].with_labels({-1: made})


@register_rule(layers.ReversibleEmbedding, sizes={"output_dim": ("embeddings", 1)})
def reversible_embedding(call: Call, x: Tensor, reverse=False):
    """Looks up the rows of a table, or multiplies with them: one logit for each row."""
    layer, out = call.layer, call.outputs[0]
    if altered_kernel(layer):
        return None
    made, table, axis = call.make(layer.embeddings, 1), layer.embeddings, 1
    if not layer.tie_weights:
        table, axis = layer.reverse_embeddings, 0
        call.bind(table, axis, made)
    if not reverse:
        return out.with_labels({-1: made})
    # What other channels would make up for would change what is looked up as well.
    call.read(table, axis, x, -1, adds_up=False)
    call.count_macs(table, positions(x, -1))
    return Tensor(out.shape, x.labels).with_labels({-1: None})


@register_rule(layers.BatchNormalization)
def batch_normalization(call: Call, x: Tensor, **kwargs):
    layer, out = call.layer, call.outputs[0]
    axis = layer.axis % len(x.shape)
    for variable in layer.variables:
        if tuple(variable.shape) == (x.shape[axis],):
            call.bind(variable, 0, x.labels[axis])
    call.constants = along(x, axis, lambda known: _normalized(layer, known))
    return Tensor(out.shape, x.labels)


def _normalized(layer, known) -> np.ndarray:
    """Returns the constants behind a batch normalization: also where its scale is 0."""
    size = layer.moving_mean.shape[0]
    gamma = np.ones(size) if layer.gamma is None else layer.gamma.numpy()
    beta = np.zeros(size) if layer.beta is None else layer.beta.numpy()
    deviation = np.sqrt(layer.moving_variance.numpy() + layer.epsilon)
    known = np.full(size, np.nan) if known is None else known
    scaled = (known - layer.moving_mean.numpy()) * (gamma / deviation)
    return np.where(gamma == 0, beta, scaled + beta)


@register_rule(layers.PReLU)
def prelu(call: Call, x: Tensor):
    alpha = call.layer.alpha
    for axis in range(-len(alpha.shape), 0):
        if alpha.shape[axis] > 1:
            call.bind(alpha, axis, x.labels[axis])
    call.constants = _not_negative
    return Tensor(call.outputs[0].shape, x.labels)


def _not_negative(known):
    return None if known is None else np.where(known >= 0, known, np.nan)


@register_rule(LayerScale, sizes={"projection_dim": ("gamma", 0)})
def layer_scale(call: Call, x: Tensor):
    gamma = call.layer.gamma
    call.bind(gamma, 0, x.labels[-1])
    call.constants = along(x, -1, lambda known: _scaled(gamma, known))
    return Tensor(call.outputs[0].shape, x.labels)


def _scaled(gamma, known):
    values = gamma.numpy()
    known = np.full(values.shape, np.nan) if known is None else known
    return np.where(values == 0, 0, values * known)


@register_rule(
    layers.LayerNormalization,
    layers.RMSNormalization,
    layers.UnitNormalization,
)
def normalization_across_channels(call: Call, x: Tensor, **kwargs):
    across = set(np.atleast_1d(call.layer.axis) % len(x.shape))
    for axis in x.labeled_axes:
        if axis in across:
            normalize_across(call, x, axis)
    return Tensor(call.outputs[0].shape, x.labels)


def normalize_across(call: Call, x: Tensor, axis: int) -> None:
    """A statistic over channels is another one over fewer: they stay, unless asked."""
    layer, labels, kind = call.layer, x.labels[axis], type(call.layer).__name__
    only_axis = list(np.atleast_1d(layer.axis) % len(x.shape)) == [axis]
    along = all(tuple(v.shape) == (x.shape[axis],) for v in layer.variables)
    if call.trace.normalization == "prune" and only_axis and along:
        for variable in layer.variables:
            call.bind(variable, 0, labels)
        call.unequal = f"{kind} normalizes over the channels that are left"
        return
    call.lock(labels, f"{kind} {call.path!r} normalizes across the channels")
    call.trace.skipped.setdefault(call.path, f"{kind} keeps its channels")


@register_rule(layers.Normalization)
def normalization(call: Call, x: Tensor):
    call.lock_all(x, f"{call.path!r} holds one statistic per channel in its settings")
    return Tensor(call.outputs[0].shape, x.labels)
