"""Rewrites: layers that compute the same in less time."""

import keras
import numpy as np
from keras import layers

from tfprune.graph import Graph
from tfprune.graph.scales import normalized_directly, why_not_folded
from tfprune.layers.channel_gate import scaled_outputs
from tfprune.layers.kernels import altered_kernel
from tfprune.layers.swapping import attribute_of
from tfprune.surgery.added import copy_terms
from tfprune.surgery.initializers import copy_initializers
from tfprune.surgery.rebuild import (
    Rebuilder,
    copy_operation_like,
    copy_state,
)

_DEPTHWISE = {
    layers.Conv1D: layers.DepthwiseConv1D,
    layers.Conv2D: layers.DepthwiseConv2D,
}
_SHARED_ARGUMENTS = (
    "name trainable dtype use_bias bias_initializer bias_regularizer bias_constraint "
    "activity_regularizer"
).split()
_PLACING_ARGUMENTS = "kernel_size strides padding data_format dilation_rate".split()
# Places of a map, above which rearranging the weights costs little beside their use.
_FEW_PLACES = 64


def faster(model: keras.Model, small_maps: bool = True) -> keras.Model:
    """Returns a model that computes the same in inference, in less time.

    Args:
        model: Functional or Sequential model without `SwapWrapper`s; not changed.
        small_maps: whether convolutions of single places become dense layers.
    """
    graph = Graph(model)
    folds = foldable_normalizations(graph)
    folded = {id(normalization) for normalization in folds.values()}
    places = _places(graph)

    def make(operation, path):
        if id(operation) in folded:
            policy = operation.dtype_policy.name
            return layers.Identity(name=operation.name, dtype=policy)
        settings = {"use_bias": True} if id(operation) in folds else {}
        twin = copy_operation_like(operation, settings, value_of=None)
        size = places.get(id(operation), 0) if small_maps else np.inf
        return _faster_layer(twin, operation, size)

    def rewrite(node, args, kwargs):
        if id(node.operation) not in folded:
            return args, kwargs
        # An Identity takes no mask.
        return (*args, kwargs.get("inputs"))[:1], {}

    def is_dense(operation):
        is_candidate = small_maps and _is_dense(operation)
        return is_candidate and places[id(operation)] <= _FEW_PLACES

    def before(operation):
        is_strided = is_dense(operation) and max(operation.strides) > 1
        return _looked_at(operation) if is_strided else None

    def is_rewritten(call):
        operation = call.operation
        in_folds = id(operation) in folds or id(operation) in folded
        return in_folds or is_dense(operation) or _is_depthwise(operation)

    parts = graph.opener(is_rewritten)
    rebuilder = Rebuilder(make, rewrite, parts=parts, before=before)
    new = rebuilder.model(graph.model)
    for old, twin in rebuilder.pairs:
        if id(old) in folds:
            _assign_folded(old, folds[id(old)], twin)
        elif id(old) not in folded:
            copy_state(old, twin, lambda v, t=twin: _faster_value(t, v.numpy()))
    return new


def _assign_folded(old, normalization, twin) -> None:
    """Gives a copy the weights with which it also does the normalization's work."""
    values, bias = _folded_values(old, normalization)
    kernels = [variable for variable in old.variables if variable is not old.bias]
    pairs = list(zip(kernels, twin.variables, strict=False))
    copy_terms(old, pairs)
    for source, target in pairs:
        value = values.get(id(source), source.numpy())
        target.assign(_faster_value(twin, value))
    twin.bias.assign(bias)
    copy_initializers(old, twin)


def _places(graph: Graph) -> dict[int, int]:
    """Returns `{id(operation): places in the largest of its outputs}`."""
    places: dict[int, int] = {}
    for call in graph.calls:
        key = id(call.operation)
        sizes = [int(np.prod(x.shape[1:-1])) for x in call.outputs]
        places[key] = max([places.get(key, 0), *sizes])
    return places


def _faster_layer(layer, old, places: float):
    """Returns an unbuilt layer that computes the same faster, or the layer itself.

    A convolution with one channel in each group is a depthwise convolution, for which
    TensorFlow has kernels of its own; a grouped one is several times slower on CPUs.
    A convolution that looks at one place at a time is a dense layer. On small maps
    that is faster, as TensorFlow's convolution rearranges its weights at every call.

    Args:
        layer: unbuilt copy of a layer.
        old: the layer, built.
        places: size of its output but for the channels.
    """
    if _is_depthwise(old):
        return _DEPTHWISE[type(layer)](
            depth_multiplier=layer.filters // layer.groups,
            depthwise_regularizer=layer.kernel_regularizer,
            depthwise_constraint=layer.kernel_constraint,
            **_arguments(layer, *_PLACING_ARGUMENTS),
        )
    if _is_dense(old) and places <= _FEW_PLACES:
        names = ("kernel_initializer", "kernel_regularizer", "kernel_constraint")
        return layers.Dense(layer.filters, **_arguments(layer, *names))
    return layer


def _arguments(layer, *names: str) -> dict:
    config = layer.get_config()
    shared = {name: config[name] for name in (*_SHARED_ARGUMENTS, *names)}
    return {**shared, "activation": layer.activation}


def _faster_value(layer, value: np.ndarray) -> np.ndarray:
    """Returns the value of an old variable in the shape that a faster layer holds."""
    if altered_kernel(layer) is not None:
        return value
    is_new = isinstance(layer, (*_DEPTHWISE.values(), layers.Dense))
    return value.reshape(layer.kernel.shape) if is_new and value.ndim > 1 else value


def _is_dense(layer) -> bool:
    """Returns whether a convolution is a dense layer in all but its type."""
    return (
        type(layer) is layers.Conv2D
        and max(*layer.kernel_size, layer.groups) == 1
        and layer.data_format == "channels_last"
        and altered_kernel(layer) is None
    )


def _looked_at(convolution):
    """Returns a layer that keeps the places at which a strided convolution looks."""
    name = f"{convolution.name}_strides"
    policy = convolution.dtype_policy.name
    return layers.MaxPooling2D(1, convolution.strides, name=name, dtype=policy)


def _is_depthwise(layer) -> bool:
    """Returns whether a convolution is a depthwise one in all but its type."""
    return (
        type(layer) in _DEPTHWISE
        and layer.groups > 1
        and altered_kernel(layer) is None
        and layer.kernel.shape[-2] == 1
        and layer.padding != "causal"
        # TensorFlow's depthwise kernels know one stride, and no dilation beside it.
        and len(set(layer.strides)) == 1
        and (max(layer.strides) == 1 or max(layer.dilation_rate) == 1)
    )


def foldable_normalizations(graph: Graph) -> dict:
    """Returns `{id(layer): BatchNormalization}` of what a layer can do by itself.

    In inference a BatchNormalization is a scale and a shift per channel, which the
    convolution or dense layer before it can do if nothing else reads its output.
    """
    return {
        id(before.operation): norm.layer
        for before, norm in normalized_directly(graph)
        if why_not_folded(before.layer, norm.layer) is None
    }


def _folded_values(layer, normalization) -> tuple[dict, np.ndarray]:
    """Returns `({id(variable): value}, bias)` of a layer that also normalizes."""
    size = normalization.moving_mean.shape[0]
    gamma, beta = (
        default if variable is None else variable.numpy()
        for variable, default in (
            (normalization.gamma, np.ones(size, np.float32)),
            (normalization.beta, np.zeros(size, np.float32)),
        )
    )
    variance = normalization.moving_variance.numpy() + normalization.epsilon
    scale = gamma / np.sqrt(variance)
    scaled = scaled_outputs(layer, keras.ops.convert_to_tensor(scale))
    bias = beta - normalization.moving_mean.numpy() * scale
    if layer.bias is not None:
        bias = bias + keras.ops.convert_to_numpy(scaled["bias"])
    values = {}
    for variable in layer.variables:
        value = scaled.get(attribute_of(layer, variable))
        if value is not None and variable is not layer.bias:
            values[id(variable)] = keras.ops.convert_to_numpy(value)
    return values, bias
