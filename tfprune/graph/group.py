"""Groups: the units that can only be removed together with all their slices."""

from dataclasses import dataclass, field

import numpy as np

from tfprune.reading import shared_array


@dataclass(frozen=True, eq=False)
class Slice:
    """What the units of a group own along one axis of one variable.

    Attributes:
        path: path of the layer that owns the variable.
        variable: the `keras.Variable`.
        axis: the axis of the variable that the units lie on.
        indices: int array of shape `(group.size, m)`: the `m` positions of each
            unit on that axis (more than one after Flatten, for instance).
        read: True if the layer reads the units (they are contracted here), False
            if it makes or carries them.
    """

    path: str
    variable: object
    axis: int
    indices: np.ndarray = field(repr=False)
    read: bool

    def values(self) -> np.ndarray:
        """Returns the entries of each unit: array of shape `(group.size, entries)`."""
        array = np.asarray(shared_array(self.variable), np.float32)
        rows = np.moveaxis(array, self.axis, 0)[self.indices.ravel()]
        return rows.reshape(len(self.indices), -1)


@dataclass(frozen=True, eq=False)
class Group:
    """Units (channels) coupled across layers, touching the same variables.

    Attributes:
        name: path of the first layer that makes the units; `"path:1"`, `"path:2"`
            for further groups of the same layer.
        size: number of units.
        slices: tuple of `Slice`, everything that goes when a unit goes.
        layers: paths of the layers that make or carry the units.
    """

    name: str
    size: int
    slices: tuple[Slice, ...] = field(repr=False)
    layers: tuple[str, ...] = field(repr=False)
