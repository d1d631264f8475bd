"""Calls that compute with open sizes: followed with some sizes, made to fit all."""

import keras
import numpy as np
from keras import ops

from tfprune.graph.following import NotOpened, as_one_input, follow, is_symbolic
from tfprune.graph.nodes import (
    Functional,
    fill_in,
    nodes_in_order,
    output_structure,
    tree,
)
from tfprune.graph.remaking import copy_operation

# Prime numbers that hardly are sizes of anything else; where they are, the parts and
# the layer differ, and the layer stays whole.
_BATCH, _LENGTH = 61, 67

# Inputs of open lengths for which all combinations of lengths are compared.
MOST_LENGTHS = 5


def follow_for_any_size(layer, inputs, args, kwargs, training: bool) -> Functional:
    """Follows the `call` of a layer that cannot do without the sizes of its inputs.

    As in `tile(token, (batch, 1, 1))`, in windows that are folded into the batch, or in
    a causal mask. What is recorded for one size is recorded again with it left open.

    Args:
        layer: as of `follow`.
        inputs: likewise; the sizes of their batches are open, and lengths may be.
        args: likewise.
        kwargs: likewise.
        training: likewise.

    Raises:
        NotOpened: if there are places where a size cannot be left open.
    """
    _check(inputs)
    sized = {
        id(x): keras.Input(batch_shape=_with_sizes(x.shape), dtype=x.dtype)
        for x in inputs
    }
    given = tree.map_structure(lambda x: sized.get(id(x), x), (args, kwargs))
    graph = follow(layer, list(sized.values()), *given, training)
    tensors = {id(sized[id(x)]): x for x in inputs}
    like = max(inputs, key=lambda x: len(x.shape))
    for node in nodes_in_order(graph):
        filled = tree.map_structure(lambda x: _general(x, like), fill_in(node, tensors))
        outputs = tree.flatten(_called(node.operation, *filled, like))
        tensors.update((id(k), x) for k, x in zip(node.outputs, outputs, strict=True))
    made = tree.map_structure(lambda x: tensors[id(x)], output_structure(graph))
    return keras.Model(as_one_input(args, kwargs), made, name=layer.name)


def _check(inputs) -> None:
    if not all(x.shape and x.shape[0] is None for x in inputs):
        raise NotOpened("the size of its batch is known")
    if any(None in x.shape[2:] for x in inputs):
        raise NotOpened("several of its sizes are open")
    if sum(None in x.shape[1:] for x in inputs) > MOST_LENGTHS:
        raise NotOpened("many of its inputs leave their lengths open")


def _with_sizes(shape) -> tuple:
    return (_BATCH, *(_LENGTH if n is None else n for n in shape[1:]))


def _general(x, like):
    """Returns a constant for any size: one row of equal ones, or what makes it anew."""
    if isinstance(x, int) and x in (_BATCH, _LENGTH):
        raise NotOpened("its `call` computes with an open size")
    if is_symbolic(x) or not (ops.is_tensor(x) or isinstance(x, np.ndarray)):
        return x
    if x.shape and x.shape[0] == _BATCH:
        rows = ops.convert_to_numpy(x)
        x = x[:1] if (rows == rows[:1]).all() else x
    is_long = None in like.shape[1:] and _LENGTH in x.shape
    return _of_length(ops.convert_to_numpy(x), like) if is_long else x


def _of_length(constant: np.ndarray, like):
    """Returns a causal mask, or the numbers of places, for the length of a tensor."""
    places = np.arange(_LENGTH)
    # The sum of no channels, so that none is looked at.
    axes = tuple(range(2, len(like.shape)))
    one_each = ops.sum(like[..., :0], axes)[0] if axes else like[0]
    numbers = ops.cumsum(ops.ones_like(one_each, "int32")) - 1
    for values, make in (
        (places, lambda: numbers),
        (places[:, None] >= places, lambda: numbers[:, None] >= numbers),
    ):
        if (
            constant.size == values.size
            and (constant.reshape(values.shape) == values).all()
        ):
            made = ops.cast(make(), str(constant.dtype))
            for axis, size in enumerate(constant.shape):
                made = ops.expand_dims(made, axis) if size == 1 else made
            return made
    raise NotOpened("its `call` makes a constant of an open length")


def _called(operation, args, kwargs, like):
    """Calls an operation, told of an open size by a setting, without that size."""
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
        shape = tuple(None if _is_size(n) else n for n in value)
        return copy_operation(operation, {name: shape})(*args, **kwargs)
    if name in ("repeats", "shape") and not others and value[0] == _BATCH:
        return _spread(operation, name, (1, *value[1:]), *args, like)
    raise NotOpened(f"{operation.name!r} in it is told an open size")


def _spread(operation, name: str, setting: tuple, x, like):
    """Does for a batch of one what an operation does, and spreads that over a batch."""
    by_itself = (
        (1, *_with_sizes(x.shape)[1:]) if name == "shape" else (1,) * len(setting)
    )
    if setting != by_itself:
        if _has_size(setting):
            raise NotOpened(f"{operation.name!r} in it is told an open size")
        x = copy_operation(operation, {name: setting})(x)
    zeros = ops.sum(like[..., :0], axis=tuple(range(1, len(like.shape))))
    return x + ops.cast(ops.reshape(zeros, (-1, *(1,) * (len(x.shape) - 1))), x.dtype)


def _has_size(value) -> bool:
    return any(map(_is_size, value if isinstance(value, (tuple, list)) else (value,)))


def _is_size(n) -> bool:
    return isinstance(n, int) and n > 0 and (n % _BATCH == 0 or n == _LENGTH)
