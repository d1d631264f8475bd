"""What contractions make of channels that are constant."""

import numpy as np

from tfprune.layers.kernels import DEPTHWISE, SEPARABLE, TRANSPOSED


def constant_sums(layer, known, borders: bool | None = None) -> np.ndarray:
    """Returns the sums of a dense or convolutional layer that are constant.

    A sum is constant where every channel it reads with a weight that is not zero is.

    Args:
        layer: the layer; its bias and activation are not applied.
        known: vector over the input channels, NaN where not constant, or None.
        borders: whether the kernel does not lie on the input everywhere, so that
            only zeros stay constant. By default what is true of the layer.

    Returns:
        Vector over the output channels, NaN where not constant.
    """
    borders = has_borders(layer) if borders is None else borders
    if isinstance(layer, SEPARABLE):
        between = _depthwise_sums(layer.depthwise_kernel, known, borders)
        return _sums(_by_place(layer.pointwise_kernel), between)
    if isinstance(layer, DEPTHWISE):
        return _depthwise_sums(layer.kernel, known, borders)
    kernel = _by_place(layer.kernel)
    if isinstance(layer, TRANSPOSED):
        kernel = kernel.swapaxes(-1, -2)
    return _sums(kernel, known, getattr(layer, "groups", 1), borders)


def has_borders(layer) -> bool:
    """Returns whether a layer's kernel meets the border of its input, or its own."""
    size = getattr(layer, "kernel_size", ())
    if isinstance(layer, TRANSPOSED):
        # Between its strides it places only parts of the kernel.
        return max(size) > 1 or max(layer.strides) > 1
    return getattr(layer, "padding", "valid") != "valid" and max(size) > 1


def _by_place(kernel) -> np.ndarray:
    """Returns a kernel as an array of shape `(places, inputs, outputs)`."""
    return kernel.numpy().reshape(-1, *kernel.shape[-2:])


def _depthwise_sums(kernel, known, borders: bool) -> np.ndarray:
    """A depthwise convolution is a grouped one, every channel a group of its own."""
    groups, by_place = kernel.shape[-2], _by_place(kernel)
    return _sums(by_place.reshape(len(by_place), 1, -1), known, groups, borders)


def _sums(kernel: np.ndarray, known, groups: int = 1, borders: bool = False):
    """Returns what `constant_sums` does for a `(places, inputs of a group, outputs)`."""
    width = kernel.shape[1]
    by_group = kernel.reshape(len(kernel), width, groups, -1)
    known = np.full(width * groups, np.nan) if known is None else known
    values = known.reshape(groups, width).T
    varies = np.isnan(values) | (borders & (values != 0))
    unknown = ((by_group != 0).any(axis=0) & varies[:, :, None]).any(axis=0)
    flowing = np.nan_to_num(values)
    sums = np.zeros(unknown.shape)
    if flowing.any():
        sums = np.einsum("pigo,ig->go", by_group.astype(np.float64), flowing)
    return np.where(unknown, np.nan, sums).ravel()
