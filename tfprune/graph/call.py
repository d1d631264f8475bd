"""Calls: what rules see of a model: its tensors, with labels on their channels."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tfprune.layers import SwapWrapper


class Tensor:
    """What tracing knows of a tensor: its shape and the labels on its axes.

    Args:
        shape: tuple of ints, the batch axis included as `None`.
        labels: tuple with, per axis, None or an int array of the axis's size.
        rows: length of its first axis for one sample: more than 1 where windows or
            steps are folded into the batch.
    """

    __slots__ = ("labels", "rows", "shape")

    def __init__(self, shape, labels=None, rows=1):
        self.shape = tuple(shape)
        self.labels = tuple(labels) if labels else (None,) * len(self.shape)
        self.rows = rows

    @property
    def labeled_axes(self) -> tuple[int, ...]:
        return tuple(a for a, labels in enumerate(self.labels) if labels is not None)

    def with_labels(self, labels: dict) -> "Tensor":
        """Returns this tensor with `{axis: labels}`; size-1 axes stay plain."""
        placed = list(self.labels)
        for axis, each in labels.items():
            placed[axis] = each if self.shape[axis] != 1 else None
        return Tensor(self.shape, placed)

    def shape_of_samples(self, number: int) -> tuple[int, ...]:
        """Returns the shape for a number of samples, where the batch is left open."""
        rows = max(1, int(number * self.rows))
        return tuple(rows if size is None else size for size in self.shape)

    @property
    def channel_axis(self) -> int | None:
        """The last labeled axis, None if there is none."""
        axes = self.labeled_axes
        return axes[-1] if axes else None


@dataclass(frozen=True)
class Binding:
    """One axis of one variable and the labels on it."""

    path: str
    variable: object
    axis: int
    labels: np.ndarray
    read: bool


@dataclass(frozen=True)
class MacTerm:
    """Multiply-accumulates of one contraction: constant x kept labels of each axis."""

    path: str
    constant: int
    labels: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Read:
    """Channels of tensor `x` contracted with one axis of `variable`.

    Attributes:
        x_axis: the axis of `x`; a grouped kernel has fewer rows than it has channels.
        variable: the kernel; None where the channels are used as they are.
        labels: labels on the variable's axis.
        closed: function that returns which rows of the axis a gate has closed.
        adds_up: whether the rows of the axis are weights of one sum; those of a
            depthwise kernel are not.
    """

    x: Tensor
    x_axis: int
    variable: object
    axis: int
    labels: np.ndarray
    closed: Callable | None = None
    adds_up: bool = True


@dataclass(eq=False)
class Call:
    """One call of one operation; the first argument of every rule.

    Attributes:
        trace: the `Trace` that it is a step of.
        operation: the Keras layer or operation.
        path: its path in the model, `"outer/inner"`.
        node: the Keras node that records the call.
        inputs: the `Tensor`s it was called on, in order.
        outputs: the `Tensor`s it returned, in order.
        constants: function from what is known of the channels of the inputs to that
            of the output: None, or a vector with the value of every channel that is
            the same at all places for all inputs and NaN for the others. None if
            nothing is ever known.
        settings: function `kept -> dict` with the constructor arguments that change
            with the width, where `kept(labels)` returns the bool array of the labels
            that stay.
        arguments: function `(kept, args, kwargs) -> (args, kwargs)` for literals in
            the call that depend on the width.
        unequal: why what is left of the channels comes out differently than beside
            zeros, None if it does not.
    """

    trace: object
    operation: object
    path: str
    node: object
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    reads: list = field(default_factory=list)
    constants: Callable | None = None
    settings: Callable | None = None
    arguments: Callable | None = None
    unequal: str | None = None

    @property
    def layer(self):
        """The layer or operation itself, without a gate around it."""
        gated = isinstance(self.operation, SwapWrapper)
        return self.operation.layer if gated else self.operation

    def make(self, variable, axis: int):
        """Returns the labels of an axis that this layer makes, new at its first call."""
        return self.trace.make(self.path, variable, axis)

    def bind(self, variable, axis: int, labels) -> None:
        """States that an axis of a variable carries `labels`."""
        self.trace.bind(Binding(self.path, variable, axis, labels, read=False))

    def read(
        self, variable, axis: int, x: Tensor, x_axis: int, labels=None, adds_up=True
    ) -> None:
        """States that an axis of a variable contracts an axis of tensor `x`.

        Args:
            labels: labels on the variable's axis, by default those of `x`.
            adds_up: whether the rows of the axis are weights of one sum.
        """
        axis, x_axis = axis % len(variable.shape), x_axis % len(x.shape)
        labels = x.labels[x_axis] if labels is None else labels
        self.trace.bind(Binding(self.path, variable, axis, labels, read=True))
        if labels is not None:
            read = Read(x, x_axis, variable, axis, labels, adds_up=adds_up)
            self.reads.append(read)

    def use(self, x: Tensor, axis: int) -> None:
        """States that the channels of `x` are used as they are, by no weights."""
        read = Read(x, axis, None, axis, x.labels[axis], adds_up=False)
        self.reads.append(read)

    def tie(self, *labels):
        """Makes all labels the same; a plain partner (None) keeps them all."""
        return self.trace.tie(*labels, reason=f"meets a fixed size in {self.path!r}")

    def lock(self, labels, reason: str) -> None:
        """Keeps every channel of `labels`, for the given reason."""
        self.trace.lock(labels, reason)

    def lock_all(self, x: Tensor, reason: str, but: int | None = None) -> None:
        for axis in x.labeled_axes:
            if axis != but:
                self.lock(x.labels[axis], reason)

    def new_labels(self, count: int):
        return self.trace.atoms.new(count)

    def count_macs(self, variable, positions) -> None:
        """Counts one multiply-accumulate per entry of `variable` and position.

        Args:
            variable: the kernel.
            positions: pairs `(size, labels or None)` of the axes it is applied along.
        """
        axes = [
            (size, self.trace.labels_of(variable, axis))
            for axis, size in enumerate(variable.shape)
        ]
        self.count_product([*axes, *positions])

    def count_product(self, axes) -> None:
        """Counts as many multiply-accumulates as the product of all axes.

        Args:
            axes: pairs `(size, labels or None)`.
        """
        sizes = [size for size, labels in axes if labels is None]
        labels = [labels for _, labels in axes if labels is not None]
        self.trace.terms.append(
            MacTerm(self.path, int(np.prod(sizes, dtype=np.int64)), tuple(labels))
        )


def variable_of(layer, name: str):
    """Returns the variable under a dotted name, such as `"cell.kernel"`."""
    return functools.reduce(getattr, name.split("."), layer)
