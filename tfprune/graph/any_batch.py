"""Calls that compute with the size of the batch: followed with one, made to fit all."""

import keras
import numpy as np
from keras import ops

from tfprune.graph.following import NotOpened, as_one_input, follow, is_symbolic
from tfprune.graph.nodes import (
    Functional,
    copy_operation,
    fill_in,
    nodes_in_order,
    output_structure,
    tree,
)

# A prime number that hardly is a size of anything else; where it is one, the parts and
# the layer differ, and the layer stays whole.
_BATCH = 61


def follow_for_any_batch(layer, inputs, args, kwargs, training: bool) -> Functional:
    """Follows the `call` of a layer that cannot do without the size of its batch.

    As in `tile(token, (batch, 1, 1))`, or windows that are folded into the batch. What
    is recorded for one size is recorded again with that size left open.

    Args:
        layer: as of `follow`.
        inputs: likewise; the sizes of their batches are open.
        args: likewise.
        kwargs: likewise.
        training: likewise.

    Raises:
        NotOpened: if there are places where the size cannot be left open.
    """
    if not all(x.shape and x.shape[0] is None for x in inputs):
        raise NotOpened("the size of its batch is known")
    sized = {
        id(x): keras.Input(batch_shape=(_BATCH, *x.shape[1:]), dtype=x.dtype)
        for x in inputs
    }
    given = tree.map_structure(lambda x: sized.get(id(x), x), (args, kwargs))
    graph = follow(layer, list(sized.values()), *given, training)
    tensors = {id(sized[id(x)]): x for x in inputs}
    for node in nodes_in_order(graph):
        filled = tree.map_structure(_one_row, fill_in(node, tensors))
        outputs = tree.flatten(_called(node.operation, *filled, inputs[0]))
        tensors.update((id(k), x) for k, x in zip(node.outputs, outputs, strict=True))
    made = tree.map_structure(lambda x: tensors[id(x)], output_structure(graph))
    return keras.Model(as_one_input(args, kwargs), made, name=layer.name)


def _one_row(x):
    """Returns one row of a constant that is the same for every sample, to be spread."""
    if isinstance(x, int) and x == _BATCH:
        raise NotOpened("its `call` computes with the size of the batch")
    if is_symbolic(x) or not (ops.is_tensor(x) or isinstance(x, np.ndarray)):
        return x
    if not x.shape or x.shape[0] != _BATCH:
        return x
    rows = ops.convert_to_numpy(x)
    return x[:1] if (rows == rows[:1]).all() else x


def _called(operation, args, kwargs, like):
    """Calls an operation, told of the batch's size by a setting, without that size."""
    sized = {
        name: value
        for name, value in vars(operation).items()
        if not isinstance(operation, keras.layers.Layer) and _has_size(value)
    }
    if not sized:
        return operation(*args, **kwargs)
    (name, value), *others = sized.items()
    if name == "newshape" and not others:
        # What is open is closed where reshapes are, in the graph that is complete.
        shape = tuple(None if n % _BATCH == 0 else n for n in value)
        return copy_operation(operation, {name: shape})(*args, **kwargs)
    if name in ("repeats", "shape") and not others and value[0] == _BATCH:
        return _spread(operation, name, (1, *value[1:]), *args, like)
    raise NotOpened(f"{operation.name!r} in it is told the size of the batch")


def _spread(operation, name: str, setting: tuple, x, like):
    """Does for a batch of one what an operation does, and spreads that over a batch."""
    by_itself = tuple(x.shape) if name == "shape" else (1,) * len(setting)
    x = x if setting == by_itself else copy_operation(operation, {name: setting})(x)
    zeros = ops.sum(like[..., :0], axis=tuple(range(1, len(like.shape))))
    return x + ops.cast(ops.reshape(zeros, (-1, *(1,) * (len(x.shape) - 1))), x.dtype)


def _has_size(value) -> bool:
    sizes = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(n, int) and n and n % _BATCH == 0 for n in sizes)
