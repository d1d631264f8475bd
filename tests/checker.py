"""A checker of pruned models from outside: it knows two Keras models, not tfprune.

It finds out from the values alone which indices every axis of every variable has
kept, so the weights need values that are all different: call `randomize` first.
"""

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)

CONTRACTIONS = {
    "Conv2D",
    "Conv3D",
    "DepthwiseConv2dNative",
    "MatMul",
    "BatchMatMul",
    "BatchMatMulV2",
}

RESCALING = (keras.layers.Rescaling, keras.layers.Normalization)


def check_slices(original, small, inputs=None, tolerance=1e-5, least_removed=0.05):
    """Demands that `small` is `original` without some channels, and computes that.

    Every variable has to be an exact slice of the one of the same layer; the original
    with zeros in everything that was removed has to give the outputs of the small
    model. Raises AssertionError also if the comparison could not have failed.

    Returns:
        `{(layer path, variable number): [kept indices of each axis]}`.
    """
    inputs = make_inputs(original) if inputs is None else inputs
    kept, expected = masked_outputs(original, small, inputs, least_removed)
    error = relative_error(expected, outputs_of(small, inputs))
    assert error <= tolerance, f"the small model is off by {error:.2g}"
    return kept


def masked_outputs(original, small, inputs, least_removed=0.05):
    """Computes what `small` should: `original` with zeros in all that was removed.

    Returns:
        The kept indices as of `check_slices`, and the outputs.
    """
    kept = kept_indices(original, small)
    pairs = _variable_pairs(original, small)
    before = sum(old.numpy().size for old, _ in pairs.values())
    after = sum(new.numpy().size for _, new in pairs.values())
    assert after <= (1 - least_removed) * before, f"blind: {after} of {before} stay"
    dense = outputs_of(original, inputs)
    zeroed = with_zeros(original, pairs, kept, lambda: outputs_of(original, inputs))
    assert relative_error(dense, zeroed) > 1e-3, "blind: zeroing changed nothing"
    assert _varies(zeroed), "blind: the output does not depend on the input"
    return kept, zeroed


def swap_channels(layer, first):
    """Swaps two output channels of a layer's kernel, and of nothing else."""
    kernel = max(layer.variables, key=lambda variable: len(variable.shape))
    # A depthwise kernel has its channels on the axis before the last.
    axis = -1 if kernel.shape[-1] > 1 else -2
    order = np.arange(kernel.shape[axis])
    order[[first, first + 1]] = first + 1, first
    kernel.assign(kernel.numpy().take(order, axis))


def kept_indices(original, small) -> dict:
    """Recovers from values which indices every variable has kept on every axis."""
    pairs = _variable_pairs(original, small)
    return {key: _slice_of(key, *pair) for key, pair in pairs.items()}


def with_zeros(model, pairs, kept, function):
    """Runs `function` while everything that was removed is zero in the model."""
    values = {key: old.numpy() for key, (old, _) in pairs.items()}
    try:
        for key, (old, _) in pairs.items():
            if all(len(i) == n for i, n in zip(kept[key], old.shape, strict=True)):
                continue
            mask = np.zeros(old.shape, bool)
            mask[np.ix_(*kept[key])] = True
            old.assign(np.where(mask, values[key], 0))
        return function()
    finally:
        for key, (old, _) in pairs.items():
            old.assign(values[key])


def layers_by_path(model, prefix="") -> dict:
    """Returns every leaf layer under its path, through nested models."""
    found = {}
    for layer in model.layers:
        path = prefix + layer.name
        if isinstance(layer, keras.Model):
            found.update(layers_by_path(layer, path + "/"))
        elif not isinstance(layer, keras.layers.InputLayer):
            found[path] = layer
    return found


def randomize(model, seed=0, size=16):
    """Gives every variable entries that are all different, and sane statistics."""
    random = np.random.default_rng(seed)
    for variable in _unique(model.variables):
        if not variable.dtype.startswith(("float", "bfloat")):
            continue
        variable.assign(_values(random, variable))
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            # It computes with constants that it makes of its variables.
            layer.finalize_state()
    _follow_data(model, size)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization) and layer.built:
            mean, variance = (
                v.numpy() for v in (layer.moving_mean, layer.moving_variance)
            )
            shift = random.normal(size=mean.shape) * 0.3 * np.sqrt(variance)
            layer.moving_mean.assign(_distinct(mean + shift))
            scale = random.uniform(0.5, 1.5, mean.shape)
            layer.moving_variance.assign(_distinct(variance * scale))
    return model


def _distinct(array):
    """Moves equal numbers apart, by as little as there is."""
    array = np.asarray(array, "float32")
    order = np.argsort(array, kind="stable")
    values = array[order]
    for i in range(1, len(values)):
        values[i] = max(values[i], np.nextafter(values[i - 1], np.float32(np.inf)))
    array[order] = values
    return array


def _values(random, variable):
    count = int(np.prod(variable.shape))
    places = (random.permutation(count) + random.uniform(0.3, 0.7)) / count
    places = places.reshape(variable.shape)
    if variable.name in ("gamma", "moving_variance", "variance"):
        signs = np.sign(random.normal(size=variable.shape))
        return (0.5 + places) * (signs if variable.name == "gamma" else 1)
    if len(variable.shape) < 2:
        return (places - 0.5) * 0.8
    fan_in = max(1, count // max(variable.shape[-1], 1))
    if "depthwise" in variable.path and variable.shape[-1] <= 4:
        fan_in = max(1, count // (variable.shape[-1] * variable.shape[-2]))
    return (places - 0.5) * np.sqrt(12 * 2 / fan_in)


def _follow_data(model, size):
    """Sets all moving statistics to those of one batch of random inputs."""
    normalizations = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not normalizations:
        return
    momenta = [layer.momentum for layer in normalizations]
    for layer in normalizations:
        layer.momentum = 0.0
    model(make_inputs(model, batch_size=8, size=size, seed=1), training=True)
    for layer, momentum in zip(normalizations, momenta, strict=True):
        layer.momentum = momentum
        variance = layer.moving_variance.numpy()
        # A channel that hardly varies would blow rounding errors up.
        floor = (0.1 + 0.1 * np.arange(variance.size) / variance.size) * variance.mean()
        layer.moving_variance.assign(np.maximum(variance, floor) + 1e-3)


def make_inputs(model, batch_size=4, size=16, seed=0):
    """Returns random inputs in the model's own structure; open sizes become `size`.

    A model that rescales its inputs gets them large enough to be told apart after it.
    """
    random = np.random.default_rng(seed)
    scale = 100.0 if any(isinstance(x, RESCALING) for x in model.layers) else 1.0

    def make(tensor):
        shape = [size if n is None else n for n in tensor.shape]
        shape[0] = tensor.shape[0] or batch_size
        if tensor.dtype == "bool":
            return random.integers(0, 2, shape).astype(bool)
        if "int" in tensor.dtype:
            return random.integers(0, 8, shape).astype(tensor.dtype)
        values = scale * random.normal(size=shape)
        return keras.ops.cast(values.astype("float32"), tensor.dtype)

    return keras.tree.map_structure(make, _input_structure(model))


def _input_structure(model):
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def outputs_of(model, inputs) -> list[np.ndarray]:
    outputs = keras.tree.flatten(model(inputs, training=False))
    return [keras.ops.convert_to_numpy(keras.ops.cast(x, "float64")) for x in outputs]


def relative_error(expected, received) -> float:
    """Returns the largest error of any output, relative to that output's maximum."""
    errors = []
    for a, b in zip(expected, received, strict=True):
        assert a.shape == b.shape, f"shapes differ: {a.shape}, {b.shape}"
        assert np.isfinite(a).all() and np.isfinite(b).all(), "outputs are not finite"
        errors.append(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30))
    return max(errors)


def profiled_macs(model) -> int:
    """Counts the multiply-accumulates of the frozen model with TensorFlow's profiler.

    On a CPU a grouped convolution is a call that the profiler does not look into: it
    is counted by hand.
    """
    signature = keras.tree.map_structure(
        lambda x: tf.TensorSpec((x.shape[0] or 1, *x.shape[1:]), x.dtype),
        _input_structure(model),
    )
    function = tf.function(lambda x: model(x, training=False))
    graph = convert_variables_to_constants_v2(
        function.get_concrete_function(signature)
    ).graph
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder.float_operation()
    options = profiler.ProfileOptionBuilder(options).with_empty_output().build()
    types = {op.name: op.type for op in graph.get_operations()}
    total, nodes = 0, [profiler.profile(graph, options=options)]
    while nodes:
        node = nodes.pop()
        nodes += node.children
        if types.get(node.name) in CONTRACTIONS:
            total += node.float_ops
    grouped = [
        layer
        for layer in layers_by_path(model).values()
        if isinstance(layer, keras.layers.Conv2D) and layer.groups > 1
    ]
    by_hand = sum(
        int(np.prod(layer.output.shape[1:-1]) * np.prod(layer.kernel.shape))
        for layer in grouped
    )
    return total // 2 + by_hand


def _variable_pairs(original, small) -> dict:
    old, new = layers_by_path(original), layers_by_path(small)
    assert old.keys() == new.keys(), f"layers differ: {old.keys() ^ new.keys()}"
    pairs = {}
    for path, layer in old.items():
        assert type(layer) is type(new[path]), f"{path!r} has another type"
        variables = zip(layer.variables, new[path].variables, strict=True)
        pairs.update({(path, i): pair for i, pair in enumerate(variables)})
    return pairs


def _slice_of(key, old, new) -> list[np.ndarray]:
    """Finds the indices with `old[np.ix_(*indices)] == new`, bit by bit."""
    before, after = old.numpy(), new.numpy()
    assert before.ndim == after.ndim and before.dtype == after.dtype, key
    if before.shape == after.shape:
        assert np.array_equal(before, after), f"{key}: values were altered"
        return [np.arange(n) for n in before.shape]
    ranked = np.sort(before, axis=None)
    assert (ranked[1:] > ranked[:-1]).all(), f"{key}: values repeat, which hides errors"
    indices = []
    for axis, size in enumerate(before.shape):
        index = np.arange(size)
        if after.shape[axis] != size:
            # One line along the axis tells its indices; the rest has to follow.
            line = after[
                tuple(slice(None) if a == axis else 0 for a in range(after.ndim))
            ]
            places = _places_of(line, before.ravel())
            assert len(places) == len(line), f"{key}: values were altered"
            index = np.unravel_index(places, before.shape)[axis]
        assert (np.diff(index) > 0).all(), f"{key}: axis {axis} is out of order"
        indices.append(index)
    assert np.array_equal(before[np.ix_(*indices)], after), (
        f"{key}: values were altered"
    )
    return indices


def _places_of(values, flat) -> np.ndarray:
    """Returns where each of a few values is in a flat array, of those that are."""
    order = np.argsort(values)
    found = np.searchsorted(values[order], flat)
    hits = np.flatnonzero(values[order[np.minimum(found, len(order) - 1)]] == flat)
    places = np.full(len(values), -1)
    places[order[found[hits]]] = hits
    return places[places >= 0]


def _varies(outputs) -> bool:
    return all(x.std(axis=0).max() > 1e-4 * np.abs(x).max() for x in outputs)


def _unique(variables) -> list:
    return list({id(v): v for v in variables}.values())
