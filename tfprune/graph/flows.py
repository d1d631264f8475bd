"""Ways labels flow through operations without weights, shared by the rules."""

import functools

import keras
import numpy as np

from tfprune.graph.call import Call, Tensor
from tfprune.graph.literals import is_literal, narrowed, values_of, with_literals
from tfprune.graph.nodes import tree


def elementwise(call: Call, *operands, absorbing: bool = False, function=None):
    """Ties the operands' axes under broadcasting.

    Args:
        call: the call.
        operands: `Tensor`s and constants, as the operation is called on them.
        absorbing: True if one zero operand makes the result zero (a product).
        function: function of the operands, run on channels that are constant; by
            default the operation's own `call`.
    """
    out = call.outputs[0]
    literals = [each for each in operands if is_literal(each)]
    labels = {
        axis: _tie_axis(call, operands, axis, out.shape[axis])
        for axis in range(1 - len(out.shape), 0)
        if out.shape[axis] != 1
    }
    result = Tensor(out.shape).with_labels(labels)
    call.constants = constants_of(
        function or call.operation.call, operands, result, absorbing
    )
    if literals:
        call.arguments = lambda kept, args, kwargs: with_literals(
            args, kwargs, lambda x: narrowed(x, result.labels, kept)
        )
    return result


def constants_of(function, operands, result: Tensor, absorbing: bool = False):
    """Returns the function from known constants to those of an elementwise result."""
    values = [values_of(each) for each in operands]
    return lambda *known: _computed(function, values, known, result, absorbing)


def _tie_axis(call: Call, operands, axis: int, size: int):
    """Ties one axis, counted from the right, of all operands that have it."""
    partners = []
    for each in operands:
        if is_literal(each):
            # It gets narrower with the tensors that it meets.
            continue
        shape = getattr(each, "shape", None)
        shape = np.shape(each) if shape is None else shape
        if len(shape) >= -axis and shape[axis] == size:
            partners.append(each.labels[axis] if isinstance(each, Tensor) else None)
    return call.tie(*partners)


def _computed(function, operands, known, out: Tensor, absorbing: bool):
    """Runs an elementwise function on the channels that all operands know."""
    axis = out.channel_axis - len(out.shape)
    known, values, varying = iter(known), [], np.zeros(out.shape[axis], bool)
    for each in operands:
        if isinstance(each, Tensor):
            vector = next(known)
            same_axis = each.channel_axis == len(each.shape) + axis
            vector = vector if vector is not None and same_axis else np.nan
            varying |= np.isnan(vector)
        else:
            vector = _along_axis(each, axis)
        values.append(vector)
    computed = run_on_constants(function, *values)
    result = np.where(varying, np.nan, np.nan if computed is None else computed)
    if absorbing:
        for each in values:
            result[np.broadcast_to(np.equal(each, 0), result.shape)] = 0
    return result


def _along_axis(constant, axis: int):
    """Returns an array that varies along one axis only as a vector, else NaN."""
    shape = np.shape(constant)
    if not shape:
        return constant
    size = shape[axis] if len(shape) >= -axis else 1
    return np.reshape(constant, -1) if np.prod(shape) == size else np.nan


def run_on_constants(function, *values):
    """Returns a function of vectors, with 0 in the place of NaN; None if it fails."""
    vectors = [
        np.nan_to_num(each) if isinstance(each, np.ndarray) else each for each in values
    ]
    try:
        return run_on_arrays(function, [np.atleast_2d(each) for each in vectors])[0]
    except Exception:
        # A function that does not run on channels alone: nothing is known of it.
        return None


def along(x: Tensor, axis: int, function):
    """Returns `function` for what is known along `axis` of `x`.

    It is called on None if `x` has no channels; if they lie along another axis, nothing
    is known.
    """
    if x.channel_axis not in (None, axis % len(x.shape)):
        return nothing_known
    return lambda known, *masks: function(known if x.channel_axis is not None else None)


def passed_on(known, *masks):
    """Constants of an operation that leaves every channel alone."""
    return known


def only_zeros(known, *masks):
    """Constants of an operation that leaves alone only channels that are zero."""
    return None if known is None else np.where(known == 0, known, np.nan)


def nothing_known(known, *masks):
    """Constants of an operation after which no channel is known."""
    return None


def keeps_zero(function) -> bool:
    """Returns whether a function of one tensor is 0 where that is 0."""
    if isinstance(function, keras.layers.Layer) and not function.built:
        return False
    try:
        return not np.any(keras.ops.convert_to_numpy(function(keras.ops.zeros((1, 2)))))
    except Exception:
        # Constants of another width, for instance: nothing is known of the result.
        return False


def is_elementwise(function, rank: int = 3) -> bool:
    """Returns whether a function of one tensor treats each entry by itself."""
    return not mixed_axes(function, rank)


@functools.lru_cache(maxsize=256)
def mixed_axes(function, rank: int) -> tuple[int, ...]:
    """Returns the axes along which a function does not treat each index by itself.

    Args:
        function: function of one tensor.
        rank: number of axes of the tensor; the first, of the batch, is left out.
    """
    axes = tuple(range(1, rank))
    is_layer = isinstance(function, keras.layers.Layer)
    if is_layer and (function.weights or not function.built):
        # Its weights lie along the channels, and trying it out would build it.
        return axes
    shapes = [(2, *(8 if a == axis else 3 for a in axes)) for axis in axes]
    return tuple(
        axis
        for axis, shape in zip(axes, shapes, strict=True)
        if commutes(function, [shape], axis) != axis
    )


def channelwise(
    call: Call, x: Tensor, axis: int, out_axis: int | None = None, constants=passed_on
):
    """The channel axis passes, every other labeled axis keeps its size."""
    axis %= len(x.shape)
    out_axis = axis if out_axis is None else out_axis
    call.lock_all(x, f"mixed by {call.path!r}", but=axis)
    call.constants = along(x, axis, constants)
    out = call.outputs[0]
    return Tensor(out.shape).with_labels({out_axis: x.labels[axis]})


def concatenate(call: Call, tensors, axis: int):
    """Joins the labels along `axis`; the other axes are tied."""
    out = call.outputs[0]
    axis %= len(out.shape)
    labels = {
        other: call.tie(*(t.labels[other] for t in tensors))
        for other in range(1, len(out.shape))
        if other != axis
    }
    if any(t.labels[axis] is not None for t in tensors):
        labels[axis] = np.concatenate([_labels_or_kept(call, t, axis) for t in tensors])

    def constants(*known):
        parts = [
            np.full(t.shape[axis], np.nan) if each is None else each
            for t, each in zip(tensors, known, strict=True)
        ]
        return np.concatenate(parts)

    call.constants = constants if labels.get(axis) is not None else None
    return Tensor(out.shape).with_labels(labels)


def _labels_or_kept(call: Call, x: Tensor, axis: int):
    if x.labels[axis] is not None:
        return x.labels[axis]
    labels = call.new_labels(x.shape[axis])
    call.lock(labels, f"joined to other channels in {call.path!r}")
    return labels


def move(call: Call, x: Tensor, function=None, pads_zero: bool = False):
    """Runs a data movement on the labels themselves and reads off where they went.

    Args:
        call: the call.
        x: the tensor whose entries are moved.
        function: the movement on a backend tensor, by default the operation's own.
            Entries it makes up must be -1.
        pads_zero: True if the entries it makes up are zeros.

    Returns:
        One `Tensor` per output of the operation.
    """
    function = function or call.operation.call
    placed = [{} for _ in call.outputs]
    keeps_values = len(x.labeled_axes) == 1 and len(call.outputs) == 1
    for axis in x.labeled_axes:
        for number, positions in enumerate(_positions(call, x, axis, function)):
            if not positions.size:
                # A slice of nothing: no channel gets any further.
                keeps_values = False
                continue
            _place(call, x.labels[axis], positions, placed[number])
            keeps_values &= pads_zero or positions.min() >= 0
    outputs = [
        Tensor(out.shape).with_labels({a: labels for a, (labels, _) in each.items()})
        for out, each in zip(call.outputs, placed, strict=True)
    ]
    if keeps_values and len(placed[0]) == 1:
        ((_, rows),) = placed[0].values()
        size = x.shape[x.channel_axis]
        call.constants = lambda known: _moved(known, rows, size)
    return outputs


def _moved(known, rows: np.ndarray, size: int) -> np.ndarray:
    """Returns the value of each place; what is made up is 0, a mixture is NaN."""
    known = np.full(size, np.nan) if known is None else known
    table = np.where(rows < 0, 0, known[rows])
    return np.where((table == table[0]).all(axis=0), table[0], np.nan)


def _positions(call: Call, x: Tensor, axis: int, function) -> list[np.ndarray]:
    """Runs a movement on a tensor that holds the position along one axis."""
    # Windows that were folded into the batch: one sample is made of several.
    larger = max(_entries(out) // max(_entries(x), 1) for out in call.outputs)
    shape = [max(larger, 1) if size is None else size for size in x.shape]
    line = np.arange(shape[axis], dtype=np.int32)
    line = line.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    grid = keras.ops.convert_to_tensor(np.broadcast_to(line, shape))
    results = tree.flatten(function(grid))
    return [keras.ops.convert_to_numpy(each) for each in results]


def _entries(x: Tensor) -> int:
    return int(np.prod(x.shape[1:], dtype=np.int64))


def _place(call: Call, labels, positions: np.ndarray, placed: dict) -> None:
    """Finds the output axis that positions vary along and puts the labels there."""
    varies = [axis for axis in range(positions.ndim) if _varies(positions, axis)]
    if not varies:
        # One channel was picked out: it can no longer be told apart from others.
        call.lock(labels, f"picked one by one in {call.path!r}")
        return
    # Of two parts of a split axis the longer one, or the later, keeps the channels.
    main = max(varies, key=lambda axis: (positions.shape[axis], axis))
    if main == 0 or main in placed:
        call.lock(labels, f"merged with other axes in {call.path!r}")
        return
    rows = np.moveaxis(positions, main, -1).reshape(-1, positions.shape[main])
    if len(rows) > 1:
        # Most often there is one, and comparing whole rows is slow.
        rows = np.unique(rows, axis=0)
    first, *others = rows[(rows >= 0).any(axis=1)]
    moved = _labels_at(call, labels, first)
    # A channel axis split in two: what shares a place on the longer part is tied.
    for row in others:
        call.tie(moved, _labels_at(call, labels, row))
    placed[main] = (moved, rows)


def _varies(positions: np.ndarray, axis: int) -> bool:
    """Returns whether positions change along an axis; made-up entries do not count."""
    largest = positions.max(axis)
    smallest = np.where(positions < 0, np.iinfo(np.int32).max, positions).min(axis)
    return bool((largest > smallest).any())


def _labels_at(call: Call, labels, index):
    moved = labels[index]
    made_up = index < 0
    if made_up.any():
        moved = moved.copy()
        moved[made_up] = call.new_labels(int(made_up.sum()))
    return moved


def common_axis(inputs) -> int | None:
    """Returns the one axis that is labeled in all tensors, None if there is none."""
    axes = {x.labeled_axes for x in inputs}
    sizes = {x.shape[axis] for x in inputs for axis in x.labeled_axes}
    if len(axes) != 1 or len(sizes) != 1:
        return None
    (labeled,) = axes
    return labeled[0] if len(labeled) == 1 else None


def commutes(function, shapes, axis: int) -> int | None:
    """Returns the output axis on which `function` treats input `axis` entry by entry.

    None if it does not: entries are mixed, or their number is fixed.
    """
    random = np.random.default_rng(0)
    size = shapes[0][axis]
    try:
        values, whole = _finite_run(function, shapes, random)
        axes = {a for a in range(whole.ndim) if whole.shape[a] == size}
        for _ in range(2):
            index = np.sort(random.choice(size, max(1, size // 2), replace=False))
            part = run_on_arrays(
                function, [np.take(each, index, axis) for each in values]
            )
            axes = {a for a in axes if are_close(np.take(whole, index, a), part)}
    except Exception:
        # Any failure on a narrower input means that the width is fixed.
        return None
    return axes.pop() if len(axes) == 1 else None


def _finite_run(function, shapes, random) -> tuple[list, np.ndarray]:
    """Returns random tensors and what a function makes of them, which is finite."""
    for draw in (random.normal, lambda size: random.uniform(0.1, 0.9, size)):
        values = [draw(size=shape).astype(np.float32) for shape in shapes]
        whole = run_on_arrays(function, values)
        if np.isfinite(whole).all():
            return values, whole
    raise ValueError("It is not finite on ordinary numbers.")


def are_close(expected, received, tolerance: float = 1e-6) -> bool:
    """True if two arrays differ by at most `tolerance` of the first one's largest."""
    # Not zero: vector instructions round otherwise than those for what is left over.
    expected, received = (np.asarray(each, np.float64) for each in (expected, received))
    return expected.shape == received.shape and bool(
        np.abs(expected - received).max(initial=0.0)
        <= tolerance * np.abs(expected).max(initial=0.0)
    )


def run_on_arrays(function, values):
    tensors = [keras.ops.convert_to_tensor(each) for each in values]
    return keras.ops.convert_to_numpy(function(*tensors))
