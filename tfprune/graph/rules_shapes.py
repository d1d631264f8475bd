"""Rules of the weightless layers."""

import numpy as np
from keras import layers

from tfprune.graph.call import Call, Tensor
from tfprune.graph.flows import (
    channelwise,
    concatenate,
    elementwise,
    mixed_axes,
    move,
    only_zeros,
    passed_on,
)
from tfprune.graph.joins import is_join, join
from tfprune.graph.registry import register_rule
from tfprune.graph.rules_layers import channel_axis


@register_rule(layers.ReLU, layers.LeakyReLU, layers.ELU)
def activation_layer(call: Call, x: Tensor):
    return elementwise(call, x)


@register_rule(layers.Activation)
def activation(call: Call, x: Tensor):
    mixed = mixed_axes(call.operation.activation, len(x.shape))
    for axis in mixed:
        call.lock(x.labels[axis], f"mixed by {call.path!r}")
    return Tensor(call.outputs[0].shape, x.labels) if mixed else elementwise(call, x)


@register_rule(layers.Softmax)
def softmax(call: Call, x: Tensor, mask=None):
    axes = np.atleast_1d(call.operation.axis) % len(x.shape)
    for axis in axes:
        call.lock(x.labels[axis], f"softmax over the channels in {call.path!r}")
    return Tensor(call.outputs[0].shape, x.labels)


@register_rule(
    layers.Identity,
    layers.ActivityRegularization,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
)
def regularization(call: Call, x: Tensor, **kwargs):
    noise_shape = getattr(call.operation, "noise_shape", None) or ()
    for axis, size in enumerate(noise_shape):
        if size not in (None, 1):
            call.lock(x.labels[axis], f"`noise_shape` of {call.path!r} is fixed")
    call.constants = passed_on
    return Tensor(call.outputs[0].shape, x.labels)


@register_rule(layers.Masking)
def masking(call: Call, x: Tensor):
    call.lock_all(x, f"{call.path!r} masks a step by all of its channels")
    return Tensor(call.outputs[0].shape, x.labels)


@register_rule(layers.Rescaling)
def rescaling(call: Call, x: Tensor):
    layer = call.operation
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        call.lock_all(x, f"{call.path!r} holds one constant per channel")
        return Tensor(call.outputs[0].shape, x.labels)
    return elementwise(call, x)


@register_rule(
    layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D,
    layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D,
    layers.AdaptiveMaxPooling1D, layers.AdaptiveMaxPooling2D,
    layers.AdaptiveMaxPooling3D, layers.AdaptiveAveragePooling1D,
    layers.AdaptiveAveragePooling2D, layers.AdaptiveAveragePooling3D,
    layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D,
    layers.Cropping1D, layers.Cropping2D, layers.Cropping3D,
)  # fmt: skip
def resampling(call: Call, x: Tensor):
    return channelwise(call, x, channel_axis(call.operation, len(x.shape)))


@register_rule(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
def zero_padding(call: Call, x: Tensor):
    axis = channel_axis(call.operation, len(x.shape))
    return channelwise(call, x, axis, constants=only_zeros)


@register_rule(
    layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D, layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D,
)  # fmt: skip
def global_pooling(call: Call, x: Tensor, **kwargs):
    axis = channel_axis(call.operation, len(x.shape))
    return channelwise(call, x, axis, axis if call.operation.keepdims else 1)


@register_rule(layers.Add)
def add(call: Call, tensors):
    if is_join(call, tensors):
        return join(call, tensors, _of_list(call.operation.call))
    return merge(call, tensors)


@register_rule(layers.Subtract, layers.Average, layers.Maximum, layers.Minimum)
def merge(call: Call, tensors):
    return elementwise(call, *tensors, function=_of_list(call.operation.call))


def _of_list(function):
    return lambda *values: function(list(values))


@register_rule(layers.Multiply)
def multiply(call: Call, tensors):
    function = _of_list(call.operation.call)
    return elementwise(call, *tensors, absorbing=True, function=function)


@register_rule(layers.Concatenate)
def concatenate_layer(call: Call, tensors):
    return concatenate(call, tensors, call.operation.axis)


@register_rule(layers.Flatten, layers.Permute)
def rearrange(call: Call, x: Tensor):
    return move(call, x)


@register_rule(layers.RepeatVector)
def repeat_vector(call: Call, x: Tensor):
    return channelwise(call, x, 1, 2)


@register_rule(layers.Reshape)
def reshape(call: Call, x: Tensor):
    (out,) = move(call, x)
    target = tuple(call.operation.target_shape)
    labels = out.labels[1:]
    if is_narrowed(target, labels):
        call.settings = lambda kept: {
            "target_shape": narrowed_shape(target, labels, kept)
        }
    return out


def is_narrowed(literal, labels) -> bool:
    """Returns whether a shape written in the model depends on the width."""
    pairs = zip(literal, labels, strict=True)
    return any(size != -1 and each is not None for size, each in pairs)


def narrowed_shape(literal, labels, kept) -> tuple:
    """Returns a shape written in the model, for the width that only `kept` leaves."""
    return tuple(
        size if size == -1 or each is None else int(kept(each).sum())
        for size, each in zip(literal, labels, strict=True)
    )
