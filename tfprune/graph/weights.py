"""The graph of single weights: one group per kernel, nothing coupled."""

from collections.abc import Mapping
from dataclasses import dataclass

import keras
import numpy as np

from tfprune.graph.graph import Graph
from tfprune.graph.group import Group
from tfprune.graph.nodes import is_recorded, model_of_steps
from tfprune.graph.subclassed import as_recorded
from tfprune.graph.units import unique_names
from tfprune.layers import KernelGate, SwapWrapper
from tfprune.layers.kernels import (
    SEPARABLE,
    TRANSPOSED,
    altered_kernel,
    einsum_axes,
    kernel_name,
    kernels_of,
    owner_of,
)

_DENSE_LIKE = (
    keras.layers.Dense,
    keras.layers.SimpleRNNCell,
    keras.layers.LSTMCell,
    keras.layers.GRUCell,
)
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


@dataclass(frozen=True, eq=False)
class Kernel:
    """One kernel of a model.

    Attributes:
        path: path of its layer.
        layer: the layer, without a gate around it.
        place: dotted attribute of the layer that holds it.
        variable: the `keras.Variable`.
        owner: the layer that holds it: the layer itself or one inside it.
        gate: the `KernelGate` around the layer, None if there is none.
        index: which of the gate's kernels it is.
    """

    path: str
    layer: object
    place: str
    variable: object
    owner: object
    gate: object | None = None
    index: int | None = None

    @property
    def input_axis(self) -> int | None:
        """The axis that is summed over, the last of several; None if none is known."""
        owner, name = self.owner, self.variable.name
        if isinstance(owner, _DENSE_LIKE):
            return 0
        if isinstance(owner, TRANSPOSED):
            return self.variable.ndim - 1
        if isinstance(owner, SEPARABLE):
            return self.variable.ndim - 2 if name == "pointwise_kernel" else None
        if isinstance(owner, _CONVOLUTIONS):
            return self.variable.ndim - 2
        if isinstance(owner, keras.layers.EinsumDense):
            summed, _ = einsum_axes(owner.equation)
            return summed[-1] if summed else None
        return None


class WeightGraph(Graph):
    """What `Graph(model, unit="weight")` makes: see there."""

    unit = "weight"

    def __init__(self, model, unit: str = "weight", block: tuple | None = None):
        self.model = as_recorded(model)
        self.block = None if block is None else _checked_block(block)
        self._settings = {"unit": unit, "block": block}
        self.skipped, self.locked, self.unequal = {}, {}, {}
        self.assumed_shapes = {}
        names, kernels = self._find_kernels()
        self.kernels: dict[str, Kernel] = dict(
            zip(unique_names(names), kernels, strict=True)
        )
        self.groups = tuple(
            Group(name, self._size(kernel.variable), (), (kernel.path,))
            for name, kernel in self.kernels.items()
        )
        self.num_units = sum(group.size for group in self.groups)

    def of(self, model) -> "WeightGraph":
        return WeightGraph(model, **self._settings)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(path for path, _ in _layers_of(self.model, ""))

    def plain_layers(self):
        """Yields (path, layer) of all layers, without the gates around them."""
        for path, layer in _layers_of(self.model, ""):
            yield path, layer.layer if isinstance(layer, SwapWrapper) else layer

    def _find_kernels(self) -> tuple[list, list]:
        names, kernels, seen = [], [], set()
        holders = self._holders()
        for path, layer in _layers_of(self.model, ""):
            gate = layer if isinstance(layer, KernelGate) else None
            inner = layer.layer if isinstance(layer, SwapWrapper) else layer
            why = why_not(inner)
            if why is not None:
                self.skipped[path] = why
                continue
            gated = [] if gate is None else [id(v) for v in gate.gated_kernels.values()]
            for dotted, variable in kernels_of(inner).items():
                if id(variable) in seen:
                    continue
                seen.add(id(variable))
                if len(holders[id(variable)]) > 1:
                    # A mask would act in one of them alone.
                    why = f"shared by {' and '.join(holders[id(variable)])}"
                    self.skipped[f"{path}/{kernel_name(inner, dotted)}"] = why
                    continue
                index = gated.index(id(variable)) if id(variable) in gated else None
                owner = owner_of(inner, dotted)
                names.append(f"{path}/{kernel_name(inner, dotted)}")
                own = None if index is None else gate
                kernels.append(Kernel(path, inner, dotted, variable, owner, own, index))
        return names, kernels

    def _holders(self) -> dict[int, list]:
        """Returns `{id(variable): paths of the layers that hold it}`."""
        holders: dict[int, list] = {}
        for path, layer in _layers_of(self.model, ""):
            for variable in layer.variables:
                holders.setdefault(id(variable), []).append(path)
        return holders

    # Shapes --------------------------------------------------------------------

    def _size(self, variable) -> int:
        if self.block is None:
            return int(np.prod(variable.shape))
        return int(np.prod(self._block_grid(variable.shape)))

    def _block_grid(self, shape) -> tuple[int, ...]:
        """Returns the numbers of blocks along the axes, after those that have none."""
        *others, rows, columns = (1, 1, *shape)[-max(2, len(shape)) :]
        height, width = self.block
        return (*others, -(-rows // height), -(-columns // width))

    def pooled(self, name: str, values: np.ndarray) -> np.ndarray:
        """Returns one number per unit: the values as such, or the means of blocks.

        Args:
            name: group name.
            values: array of the kernel's shape.
        """
        if self.block is None:
            return values.reshape(-1)
        shape = self.kernels[name].variable.shape
        ones = self._blocks(np.ones(shape, np.float32))
        return (self._blocks(values).sum((-1, -3)) / ones.sum((-1, -3))).reshape(-1)

    def _blocks(self, values: np.ndarray) -> np.ndarray:
        """Returns values as `(..., grid rows, height, grid columns, width)`, padded."""
        grid = self._block_grid(values.shape)
        (rows, columns), (height, width) = grid[-2:], self.block
        values = values.reshape(*grid[:-2], *((1, 1, *values.shape)[-2:]))
        missing = rows * height - values.shape[-2], columns * width - values.shape[-1]
        pads = [(0, 0)] * (values.ndim - 2) + [(0, each) for each in missing]
        return np.pad(values, pads).reshape(*grid[:-1], height, columns, width)

    def expanded(self, name: str, mask: np.ndarray) -> np.ndarray:
        """Returns the mask of a group as a bool array of the kernel's shape."""
        shape = tuple(self.kernels[name].variable.shape)
        mask = np.asarray(mask, bool)
        if self.block is None:
            return mask.reshape(shape)
        mask = mask.reshape(self._block_grid(shape))
        mask = mask.repeat(self.block[0], -2).repeat(self.block[1], -1)
        *_, rows, columns = (1, 1, *shape)
        return mask[..., :rows, :columns].reshape(shape)

    def entries(self, name: str) -> np.ndarray | int:
        """Returns how many weights each unit of a group has."""
        if self.block is None:
            return 1
        ones = np.ones(self.kernels[name].variable.shape, np.int64)
        return self._blocks(ones).sum((-1, -3)).reshape(-1)

    # Reading -------------------------------------------------------------------

    def layer_masks(self, masks: Mapping) -> dict[str, np.ndarray]:
        """Returns `{group name: bool array of the kernel's shape}` of what is masked."""
        self.check(masks)
        return {
            name: self.expanded(name, mask)
            for name, mask in masks.items()
            if not np.all(mask)
        }

    def summary(self) -> str:
        lines = [f"{len(self.groups)} kernels, {self.num_units} units"]
        for group in self.groups:
            shape = tuple(self.kernels[group.name].variable.shape)
            lines.append(f"  {group.name}: {group.size} {shape}")
        lines += [f"  skipped {path}: {why}" for path, why in self.skipped.items()]
        return "\n".join(lines)


def why_not(layer) -> str | None:
    """Returns why the weights of a layer cannot be masked; None if there is nothing."""
    if any(
        isinstance(each, keras.layers.SpectralNormalization)
        for each in layer._flatten_layers()
    ):
        return "SpectralNormalization writes to its kernel in every training step"
    if altered_kernel(layer) is not None:
        return altered_kernel(layer)
    if layer.weights and not kernels_of(layer):
        names = ", ".join(dict.fromkeys(v.name for v in layer.weights))
        return f"it has no kernels ({names})"
    return None


def _layers_of(model, prefix: str, seen: set | None = None):
    """Yields (path, layer), each layer once, nested models taken apart."""
    seen = set() if seen is None else seen
    for layer in model.layers:
        path = f"{prefix}{layer.name}"
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        inner = model_of_steps(layer) or layer
        if is_recorded(inner):
            yield from _layers_of(inner, f"{path}/", seen)
        else:
            yield path, layer


def _checked_block(block) -> tuple[int, int]:
    sizes = tuple(block) if isinstance(block, (tuple, list)) else ()
    if len(sizes) != 2 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError(
            "`block` must be two positive ints, the size of a block along a kernel's "
            f"input and output axis, such as (4, 1). Received: block={block!r}"
        )
    return sizes
