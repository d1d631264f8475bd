"""Which layers are pruned, and for what hardware: the policies of tfmot."""

import abc

import keras
from keras import layers

from tfprune.graph.nodes import as_functional, nodes_in_order


class PruningPolicy(abc.ABC):
    """Chooses the layers of a model that `prune_low_magnitude` wraps."""

    @abc.abstractmethod
    def allow_pruning(self, layer):
        """Returns whether a layer is wrapped."""

    @abc.abstractmethod
    def ensure_model_supports_pruning(self, model):
        """Raises ValueError if a model cannot be pruned by this policy."""


class PruneForLatencyOnXNNPack(PruningPolicy):
    """Prunes only what XNNPACK's sparse inference makes faster: 1x1 convolutions.

    XNNPACK needs a network that begins with a 3x3 convolution of stride 2 on three
    channels behind a `ZeroPadding2D(1)`, ends with a `GlobalAveragePooling2D` that
    keeps its dimensions, and has nothing in between but what it knows. A model that
    does not fit is refused, with the layer that stands in the way.

    Reference:
        [Elsen et al., 2020](https://arxiv.org/abs/1911.09723)
    """

    def allow_pruning(self, layer):
        return isinstance(layer, layers.Conv2D) and layer.kernel_size == (1, 1)

    def ensure_model_supports_pruning(self, model):
        _check_is_graph(model)
        nodes = [n for n in nodes_in_order(as_functional(model)) if n.input_tensors]
        starts = [n for n in nodes if _is_start(n.operation)]
        ends = [n for n in nodes if isinstance(n.operation, _POOLING)]
        if not starts:
            raise ValueError(
                f"Model {model.name!r} must begin with a 3x3 `Conv2D` with stride 2, "
                '`padding="valid"` and 3 input channels behind a `ZeroPadding2D` of 1. '
                "Received none."
            )
        if not ends:
            raise ValueError(
                f"Model {model.name!r} must end with a `GlobalAveragePooling2D`. "
                "Received none."
            )
        for node in _between(nodes, starts, ends):
            why = _why_not(node.operation)
            if why:
                raise ValueError(
                    f"Layer {node.operation.name!r} "
                    f"({type(node.operation).__name__}) of {model.name!r} is not one "
                    f"that XNNPACK runs sparse: {why}. Change it, or prune without "
                    "`pruning_policy`."
                )


_POOLING = layers.GlobalAveragePooling2D
_ALWAYS = (
    layers.Add,
    layers.Multiply,
    layers.ZeroPadding2D,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Dropout,
)
_OPERATIONS = {"Add", "Subtract", "Multiply", "Identity"}
_ACTIVATIONS = {"relu", "relu6", "leaky_relu", "elu", "sigmoid", "linear"}


def _check_is_graph(model):
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(f"`model` must be a built model. Received: {model!r}")
    as_functional(model)


def _is_start(layer) -> bool:
    if type(layer) is not layers.Conv2D or layer.kernel.shape[:3] != (3, 3, 3):
        return False
    padding = _padding_before(layer)
    return layer.strides == (2, 2) and layer.padding == "valid" and padding == 1


def _padding_before(layer) -> int | None:
    """Returns the width of the `ZeroPadding2D` in front of a layer, None without."""
    producers = [tensor._keras_history.operation for tensor in _inputs(layer)]
    if len(producers) != 1 or not isinstance(producers[0], layers.ZeroPadding2D):
        return None
    sizes = {size for pair in producers[0].padding for size in pair}
    return sizes.pop() if len(sizes) == 1 else None


def _inputs(layer) -> list:
    return layer._inbound_nodes[0].input_tensors


def _between(nodes, starts, ends) -> list:
    """Returns the nodes that lie behind a start and before an end, ends included."""
    behind = {id(x) for node in starts for x in node.outputs}
    for node in nodes:
        if any(id(x) in behind for x in node.input_tensors):
            behind.update(id(x) for x in node.outputs)
    needed = {id(x) for node in ends for x in node.outputs}
    found = []
    for node in reversed(nodes):
        if any(id(x) in needed for x in node.outputs):
            needed.update(id(x) for x in node.input_tensors)
            if any(id(x) in behind for x in node.input_tensors):
                found.append(node)
    return found[::-1]


def _why_not(layer) -> str | None:
    """Returns what is in the way of sparse inference in a layer, None if nothing is."""
    if isinstance(layer, _ALWAYS) or type(layer).__name__ in _OPERATIONS:
        return None
    for kind, check in _CHECKS:
        if isinstance(layer, kind):
            return check(layer)
    return "its type is not supported"


def _check_depthwise(layer):
    size = layer.kernel_size[0]
    if layer.kernel_size not in ((3, 3), (5, 5)):
        return "its kernel must be 3x3 or 5x5"
    if layer.depth_multiplier != 1 or layer.dilation_rate not in (1, (1, 1)):
        return "it must have `depth_multiplier=1` and no dilation"
    if layer.padding == "same" and layer.strides == (1, 1):
        return None
    if layer.padding == "valid" and _padding_before(layer) == size // 2:
        return (
            None if layer.strides in ((1, 1), (2, 2)) else "its stride must be 1 or 2"
        )
    return (
        f'it must have `padding="valid"` behind a `ZeroPadding2D({size // 2})`, or '
        '`padding="same"` and stride 1'
    )


def _check_pointwise(layer):
    is_plain = layer.groups == 1 and layer.dilation_rate in (1, (1, 1))
    if layer.kernel_size == (1, 1) and layer.strides == (1, 1) and is_plain:
        return None
    return "it must be 1x1, of stride 1, without groups or dilation"


def _check_pooling(layer):
    return None if layer.keepdims else "it must have `keepdims=True`"


def _check_normalization(layer):
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    return None if list(axes) in ([3], [-1]) else "its axis must be the last"


def _check_upsampling(layer):
    is_bilinear = layer.interpolation == "bilinear"
    return None if is_bilinear else "it must interpolate bilinearly"


def _check_activation(layer):
    name = keras.activations.serialize(layer.activation)
    is_known = name in _ACTIVATIONS
    return None if is_known else f"its activation must be one of {sorted(_ACTIVATIONS)}"


_CHECKS = (
    (layers.DepthwiseConv2D, _check_depthwise),
    (layers.Conv2D, _check_pointwise),
    (_POOLING, _check_pooling),
    (layers.BatchNormalization, _check_normalization),
    (layers.UpSampling2D, _check_upsampling),
    (layers.Activation, _check_activation),
)
