"""Kernels: the weights of a layer, and of the layers in it, that masks can be put on."""

import keras

_ENDINGS = ("kernel", "embeddings")
TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


def kernels_of(layer) -> dict:
    """Returns `{dotted attribute: variable}` of a layer's kernels, each variable once.

    A kernel is a floating-point variable whose name ends in `kernel` or `embeddings`,
    so biases, scales, slopes, statistics and seeds are none. Those of layers inside
    are found where an attribute, or a list in one, holds the layer:
    `"cell.recurrent_kernel"`, `"_query_dense._kernel"`, `"blocks.0._kernel"`.

    Args:
        layer: built layer; it may be made of others.
    """
    found: dict[str, keras.Variable] = {}
    _collect(layer, "", found, set())
    return found


def _collect(owner, prefix: str, found: dict, seen: set) -> None:
    if id(owner) in seen:
        return
    seen.add(id(owner))
    for name, value in vars(owner).items():
        if isinstance(value, keras.Variable) and id(value) not in seen:
            if is_kernel(value):
                seen.add(id(value))
                found[f"{prefix}{name}"] = value
    # Keras keeps all layers in one list besides: the last resort for a name.
    attributes = sorted(vars(owner).items(), key=lambda item: item[0] == "_layers")
    for name, value in attributes:
        inside = enumerate(value) if isinstance(value, (list, tuple)) else ()
        parts = [(name, value), *((f"{name}.{i}", each) for i, each in inside)]
        for place, part in parts:
            if isinstance(part, keras.layers.Layer):
                _collect(part, f"{prefix}{place}.", found, seen)


def is_kernel(variable) -> bool:
    """Returns whether a variable is a kernel, by its name and type."""
    is_float = keras.backend.is_float_dtype(variable.dtype)
    return variable.name.endswith(_ENDINGS) and is_float


def output_axes(layer, variable) -> tuple[int, ...]:
    """Returns the axes of a kernel along which its outputs lie, each at least 0.

    Args:
        layer: the layer that holds the kernel.
        variable: the kernel.
    """
    last = len(variable.shape) - 1
    if isinstance(layer, keras.layers.EinsumDense):
        return einsum_axes(layer.equation)[1] or (last,)
    if isinstance(layer, TRANSPOSED):
        return (last - 1,)
    if is_depthwise(layer, variable):
        return (last - 1, last)
    return (last,)


def is_depthwise(layer, variable) -> bool:
    """Returns whether a kernel has weights of its own for every input channel."""
    return isinstance(layer, DEPTHWISE) or variable.name == "depthwise_kernel"


def einsum_axes(equation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the axes of an `EinsumDense` kernel that are summed over, and the others.

    Args:
        equation: such as `"abc,cde->abde"`.
    """
    inputs, result = equation.replace(" ", "").split("->")
    kernel = list(enumerate(inputs.split(",")[1]))
    summed = tuple(axis for axis, letter in kernel if letter not in result)
    return summed, tuple(axis for axis, letter in kernel if letter in result)


def altered_kernel(layer) -> str | None:
    """Returns what a layer computes with instead of its kernel; None if with that."""
    is_layer = isinstance(layer, keras.layers.Layer)
    for each in layer._flatten_layers() if is_layer else ():
        if getattr(each, "lora_enabled", False):
            return "LoRA is enabled, and what it learnt is no part of the kernel"
        if getattr(each, "quantization_mode", None) is not None:
            return f"its kernel is quantized ({each.quantization_mode})"
    return None


def kernel_name(layer, dotted: str) -> str:
    """Returns what a kernel is called within its layer, such as `"query/kernel"`.

    Args:
        layer: the layer.
        dotted: attribute, as `kernels_of` gives it.
    """
    return "/".join(owner.name for owner in _owners(layer, dotted)[1:])


def owner_of(layer, dotted: str):
    """Returns the layer that holds what a dotted attribute of `layer` names."""
    return _owners(layer, dotted)[-2]


def _owners(layer, dotted: str) -> list:
    """Returns the layers on the way to an attribute, and the attribute."""
    owners, owner = [layer], layer
    for attribute in dotted.split("."):
        is_list = isinstance(owner, (list, tuple))
        owner = owner[int(attribute)] if is_list else vars(owner)[attribute]
        if not isinstance(owner, (list, tuple)):
            owners.append(owner)
    return owners
