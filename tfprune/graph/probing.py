"""Operations and layers of a user's own: tried out at other widths."""

import functools

import keras
import numpy as np

from tfprune.graph.call import Call, Tensor
from tfprune.graph.flows import (
    are_close,
    common_axis,
    commutes,
    keeps_zero,
    only_zeros,
    run_on_arrays,
)
from tfprune.graph.following import training_argument
from tfprune.graph.nodes import tree, unrecorded
from tfprune.graph.opening import has_sublayers


def by_probing(call: Call, *args, **kwargs):
    """Follows an operation without weights by trying it out.

    If dropping half of the channels before the operation is the same as dropping
    them after it, twice, for different halves, the channels pass one by one and no
    setting of the operation depends on their number. Several tensors are tied. Returns
    None if it is not so, in training either, or if the operation cannot be tried.
    """
    layer = call.operation
    if getattr(layer, "variables", ()) or len(call.outputs) != 1:
        return None
    (out,) = call.outputs
    if not any(x.labeled_axes for x in call.inputs):
        return out
    axis = common_axis(call.inputs)
    if axis is None:
        return None

    def function(*values, **training):
        rest = iter(values)
        filled = tree.map_structure(
            lambda each: next(rest) if isinstance(each, Tensor) else each,
            (args, kwargs),
        )
        # What is drawn in training is the same every time.
        with unrecorded(layer), keras.StatelessScope():
            return layer.call(*filled[0], **filled[1], **training)

    ways = [function]
    if training_argument(layer, True):
        ways.append(functools.partial(function, training=True))
    shapes = [x.shape_of_samples(1) for x in call.inputs]
    out_axis = commutes(function, shapes, axis)
    if out_axis is None or any(
        _is_mixed(each, shapes, (axis, out_axis)) for each in ways[1:]
    ):
        return None
    labels = call.tie(*(x.labels[axis] for x in call.inputs))
    if len(call.inputs) == 1:
        call.constants = lambda known: (
            only_zeros(known) if all(map(keeps_zero, ways)) else None
        )
    return Tensor(out.shape).with_labels({out_axis: labels})


def _is_mixed(function, shapes, axes) -> bool:
    run = functools.partial(run_on_arrays, function)
    values = [np.ones(shape, np.float32) for shape in shapes]
    kept = np.arange(max(1, shapes[0][axes[0]] // 2))
    try:
        return _depends_on_others((run, run), values, kept, axes)
    except Exception:
        # Whatever fails on a narrower input: its width is fixed.
        return True


def _depends_on_others(runs, values, kept, axes, tolerance: float = 1e-6) -> bool:
    """Returns whether some of the channels depend on what the others are.

    They may be random: what is drawn is the same only for the same shapes.

    Args:
        runs: a function of arrays, and one of arrays with only `kept` channels, which
            raises if their number is fixed.
        values: arrays to run it on.
        kept: int array, the places of the channels.
        axes: the axes of the channels, of the inputs and of the output.
        tolerance: see `are_close`.
    """
    whole, part = runs
    axis, out_axis = axes
    random = np.random.default_rng(0)
    others = np.delete(np.arange(values[0].shape[axis]), kept)
    found = []
    for _ in range(2):
        values = [np.array(each) for each in values]
        for each in values:
            rows = np.moveaxis(each, axis, 0)
            rows[others] = random.normal(size=rows[others].shape)
        found.append(np.take(whole(values), kept, out_axis))
    part([np.take(each, kept, axis) for each in values])
    return not are_close(*found, tolerance)


def by_narrowing(call: Call, *args, **kwargs):
    """Follows a layer with weights that treats every channel by itself.

    Made anew for some of the channels, and given their part of the weights, such a
    layer computes their part of what it computes. This is tried with two choices of
    channels and with random weights. The axes of weights that get shorter with the
    input are those of the channels; constructor arguments that have to follow do.

    Returns None if the layer is of another kind, or cannot be tried.
    """
    layer, axis = call.layer, common_axis(call.inputs)
    if axis is None or len(call.outputs) != 1 or has_sublayers(layer):
        return None
    probe = _Probe(layer, call.inputs, (args, kwargs), axis)
    found = probe.narrowed()
    if found is None:
        return None
    names, out_axis, weight_axes = found
    labels = call.tie(*(x.labels[axis] for x in call.inputs))
    for variable, axes in zip(layer.variables, weight_axes, strict=True):
        for each in axes:
            call.bind(variable, each, labels)
    call.settings = lambda kept: probe.arguments(names, int(kept(labels).sum()))
    call.constants = lambda *known: probe.constants(out_axis, known)
    return Tensor(call.outputs[0].shape).with_labels({out_axis: labels})


class _Probe:
    """Copies of a layer of several widths, run on parts of the same inputs.

    Args:
        layer: the layer.
        inputs: the `Tensor`s it is called on.
        arguments: `(args, kwargs)` of the call, those tensors in it.
        axis: the axis with the channels.
    """

    def __init__(self, layer, inputs, arguments, axis: int):
        self._layer, self._arguments, self._axis = layer, arguments, axis
        self._shapes = [x.shape_of_samples(2) for x in inputs]
        self._size = self._shapes[0][axis]
        is_short = keras.backend.standardize_dtype(layer.compute_dtype).endswith("16")
        self._tolerance = 5e-2 if is_short else 1e-5

    def narrowed(self):
        """Returns what follows the width of a layer, None if it has one width only.

        Returns:
            The names of constructor arguments, the axis of the output, and the axes of
            every variable.
        """
        try:
            self._config = self._layer.get_config()
            self._make_whole()
            sized = [k for k, v in self._config.items() if self._resized(v, 0) != v]
        except Exception:
            # A layer that does not describe itself is kept as it is.
            return None
        for names in [[], sized] if sized else [[]]:
            try:
                first, second = (self._part(names, share) for share in (2, 3))
            except Exception:
                # Whatever fails on a narrower input: its width is fixed.
                continue
            if first == second and first is not None:
                return (names, *first)
        return None

    def arguments(self, names: list[str], size: int) -> dict:
        """Returns the constructor arguments for another number of channels."""
        return {name: self._resized(self._config[name], size) for name in names}

    def constants(self, out_axis: int, known):
        """Returns what the layer makes of channels that are constant."""
        if any(each is None for each in known):
            return None
        shape = [1] * len(self._shapes[0])
        shape[self._axis] = self._size
        values = [
            np.broadcast_to(np.nan_to_num(each).reshape(shape), whole)
            for each, whole in zip(known, self._shapes, strict=True)
        ]
        rows = np.moveaxis(self._run(self._layer, values), out_axis, 0)
        rows = rows.reshape(self._size, -1)
        is_constant = (rows == rows[:, :1]).all(axis=1) & ~np.isnan(known).any(axis=0)
        return np.where(is_constant, rows[:, 0], np.nan)

    def _make_whole(self) -> None:
        """Runs a copy of the layer with random weights on random inputs."""
        self._random = random = np.random.default_rng(0)
        self._values = [random.normal(size=shape) for shape in self._shapes]
        self._whole = self._copy({})
        self._run(self._whole, self._values)
        for variable, own in zip(
            self._whole.variables, self._layer.variables, strict=True
        ):
            is_float = keras.backend.is_float_dtype(own.dtype)
            # Positive, as some are variances.
            variable.assign(random.uniform(0.5, 1.5, own.shape) if is_float else own)
        self._expected = self._run(self._whole, self._values)

    def _part(self, names: list[str], share: int):
        """Returns `(output axis, axes of every variable)` of a narrower layer."""
        size = max(1, self._size // share)
        index = np.sort(self._random.choice(self._size, size, replace=False))
        values = [np.take(each, index, self._axis) for each in self._values]
        twin = self._copy(self.arguments(names, size))
        self._run(twin, values)
        weight_axes = []
        for old, new in zip(self._whole.variables, twin.variables, strict=True):
            shapes = zip(old.shape, new.shape, strict=True)
            axes = [
                axis for axis, (before, after) in enumerate(shapes) if before != after
            ]
            value = old.numpy()
            for axis in axes:
                value = np.take(value, index, axis)
            new.assign(value)
            weight_axes.append(axes)
        received, whole = self._run(twin, values), self._expected
        out_axes = [
            axis
            for axis in range(1, whole.ndim)
            if whole.shape[axis] == self._size
            and are_close(np.take(whole, index, axis), received, self._tolerance)
        ]
        if len(out_axes) != 1:
            return None
        if training_argument(self._layer, True):
            runs = [
                functools.partial(self._run, each, training=True)
                for each in (self._whole, twin)
            ]
            axes = (self._axis, out_axes[0])
            if _depends_on_others(runs, self._values, index, axes, self._tolerance):
                return None
        return out_axes[0], weight_axes

    def _resized(self, value, size: int):
        """Returns a constructor argument with another number of channels in it."""
        if isinstance(value, (list, tuple)):
            return type(value)(self._resized(each, size) for each in value)
        return size if type(value) is int and value == self._size else value

    def _copy(self, settings: dict):
        return type(self._layer).from_config({**self._config, **settings})

    def _run(self, layer, values, training: bool = False) -> np.ndarray:
        rest = iter(values)
        args, kwargs = tree.map_structure(
            lambda x: (
                keras.ops.cast(next(rest), "float32") if isinstance(x, Tensor) else x
            ),
            self._arguments,
        )
        kwargs = {**kwargs, **training_argument(layer, training)}
        # What a layer draws in training is the same every time.
        with keras.StatelessScope() if training else unrecorded(layer):
            out = layer(*args, **kwargs)
        return keras.ops.convert_to_numpy(keras.ops.cast(out, "float32"))
