"""Rewrites: layers that compute the same in less time."""

import numpy as np
from keras import layers

_DEPTHWISE = {
    layers.Conv1D: layers.DepthwiseConv1D,
    layers.Conv2D: layers.DepthwiseConv2D,
}
_SHARED_ARGUMENTS = (
    "name trainable dtype kernel_size strides padding data_format dilation_rate "
    "use_bias bias_initializer bias_regularizer bias_constraint activity_regularizer"
).split()


def faster_layer(layer, old):
    """Returns an unbuilt layer that computes the same faster, or the layer itself.

    A convolution with one channel in each group is a depthwise convolution, for which
    TensorFlow has kernels of its own; a grouped one is several times slower on CPUs.

    Args:
        layer: unbuilt copy of a layer.
        old: the layer, built.
    """
    if not _is_depthwise(old):
        return layer
    config = layer.get_config()
    return _DEPTHWISE[type(layer)](
        depth_multiplier=layer.filters // layer.groups,
        activation=layer.activation,
        depthwise_regularizer=layer.kernel_regularizer,
        depthwise_constraint=layer.kernel_constraint,
        **{name: config[name] for name in _SHARED_ARGUMENTS},
    )


def faster_value(layer, value: np.ndarray) -> np.ndarray:
    """Returns the value of an old variable in the shape that a faster layer holds."""
    if isinstance(layer, tuple(_DEPTHWISE.values())) and value.ndim > 1:
        return value.reshape(layer.kernel.shape)
    return value


def _is_depthwise(layer) -> bool:
    """Returns whether a convolution is a depthwise one in all but its type."""
    return (
        type(layer) in _DEPTHWISE
        and layer.groups > 1
        and layer.kernel.shape[-2] == 1
        and layer.padding != "causal"
        # TensorFlow's depthwise kernels know one stride, and no dilation beside it.
        and len(set(layer.strides)) == 1
        and (max(layer.strides) == 1 or max(layer.dilation_rate) == 1)
    )
