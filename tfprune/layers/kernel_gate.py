"""KernelGate: what all masks on single weights share."""

import abc
import zlib

from keras import ops

from tfprune.layers.kernels import (
    kernel_name,
    kernels_of,
    output_axes,
    owner_of,
)
from tfprune.layers.swapping import SwapWrapper, load_layer


class KernelGate(SwapWrapper):
    """Base of the gates on the kernels of a layer, of whatever type it is.

    During `call` every kernel is replaced by what `gated` makes of it. Biases, scales
    and statistics are left alone.

    Args:
        layer: the layer to wrap, with one kernel or more.
        kernels: dotted attributes of the kernels to gate, such as
            `["cell.recurrent_kernel"]`. By default all of them.

    Raises:
        ValueError: if the layer has no such kernel.
    """

    def __init__(self, layer, kernels=None, **kwargs):
        self.kernels = None if kernels is None else list(kernels)
        super().__init__(layer, **kwargs)

    def build(self, input_shape=None):
        super().build(input_shape)
        self._places = tuple(self.find_kernels())
        self.build_gate()

    def find_kernels(self) -> dict:
        """Returns `{dotted attribute: variable}` of the kernels to gate."""
        own = kernels_of(self.layer)
        places = list(own) if self.kernels is None else self.kernels
        unknown = [place for place in places if place not in own]
        if unknown or not places:
            raise ValueError(
                "`kernels` must be attributes of the layer's kernels. Received: "
                f"kernels={self.kernels} for layer {self.layer.name!r} "
                f"({type(self.layer).__name__}), whose kernels are {list(own)}"
            )
        return {place: own[place] for place in places}

    @abc.abstractmethod
    def build_gate(self):
        """Makes the variables of the gate, for each of `gated_kernels`."""

    @abc.abstractmethod
    def gated(self, index, kernel):
        """Returns what takes the place of a kernel during `call`.

        Args:
            index: int. Which of the gate's kernels it is.
            kernel: tensor.
        """

    @abc.abstractmethod
    def mask(self, index):
        """Returns a bool tensor, True where the kernel of this index stays."""

    @abc.abstractmethod
    def set_mask(self, index, mask):
        """Opens and closes the weights of a kernel, in place.

        Args:
            index: int. Which of the gate's kernels it is.
            mask: bool array of the kernel's shape, True = keep.
        """

    @property
    def gated_kernels(self) -> dict:
        """`{name within the layer: variable}` of the kernels, in order."""
        own = self.find_kernels()
        return {kernel_name(self.layer, place): own[place] for place in self._places}

    def kernel(self, index):
        """Returns the kernel of an index, a variable."""
        owner, name = self._find(self._places[index])
        return owner[name]

    def output_axes(self, index) -> tuple[int, ...]:
        """Returns the axes of a kernel along which its outputs lie."""
        owner = owner_of(self.layer, self._places[index])
        return output_axes(owner, self.kernel(index))

    def own_seed(self, seed):
        """Returns a seed that follows from one for all layers, None from None."""
        return None if seed is None else zlib.crc32(f"{seed}/{self.name}".encode())

    def add_gate_weight(self, name, index, kernel, **settings):
        """Adds a weight of a kernel's shape, which no policy casts."""
        settings = {"shape": kernel.shape, "autocast": False, **settings}
        suffix = f"_{index}" if index else ""
        return self.add_weight(name=f"{name}{suffix}", **settings)

    def add_mask(self, index, kernel):
        """Adds a bool mask of a kernel's shape, all open."""
        settings = {"dtype": "bool", "initializer": _all_true, "trainable": False}
        return self.add_gate_weight("mask", index, kernel, **settings)

    def swaps(self) -> dict:
        """Returns `{dotted attribute: masked kernel}`."""
        values = {}
        for index, place in enumerate(self._places):
            owner, name = self._find(place)
            values[place] = self.gated(index, ops.convert_to_tensor(owner[name]))
        return values

    def get_config(self):
        return {**super().get_config(), "kernels": self.kernels}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        layer = load_layer(config["layer"], custom_objects)
        return cls(**{**config, "layer": layer})


def _all_true(shape, dtype=None):
    return ops.ones(shape, dtype="bool")
