"""Shapes of tensors where a model leaves sizes open."""

import contextlib
import functools
from fractions import Fraction

import keras

from tfprune.graph.nodes import Functional, fill_in, nodes_in_order, tree

# Stands for a batch that is left open: with 1, axes would be taken for ones to spread.
_BATCH = 2

# Stand-ins for a size that a model leaves open, such as the height of an image. The
# smaller ones are for what cannot take the first, such as a table of 128 positions.
OPEN_SIZES = (224, 128, 64, 32, 16, 8, 4)


def closed_shapes(node, shapes: list, inputs: dict) -> list[list]:
    """Returns the shapes of what a node makes, without the sizes that Keras leaves open.

    Keras leaves the length of `reshape(x, (batch, -1, channels))` open as long as the
    batch is. What it says for a batch of two is the answer; where it has none, the size
    is taken from the node's inputs.

    Args:
        node: the node.
        shapes: the shapes as far as they are known, those of batches included.
        inputs: by the id of a Keras tensor, its `Tensor`.
    """
    if all(None not in shape[1:] for shape in shapes):
        return [list(shape) for shape in shapes]
    of_two = _shapes_for_a_batch_of_two(node, inputs)
    given = [inputs[id(x)].shape for x in node.input_tensors]
    closed = []
    for shape, other in zip(shapes, of_two or shapes, strict=True):
        sizes = [n if n is not None else m for n, m in zip(shape[1:], other[1:])]
        closed.append([shape[0], *_sizes_of_inputs(sizes, given)])
    return closed


def _shapes_for_a_batch_of_two(node, inputs: dict) -> list | None:
    def of_two(x):
        given = inputs[id(x)]
        rows = int(_BATCH * given.rows)
        shape = [rows if size is None else size for size in given.shape]
        if None in x.shape[:1]:
            # A nested model is made for any batch, also in one that is not.
            shape[0] = rows
        return keras.KerasTensor(shape, x.dtype)

    args, kwargs = fill_in(node, {id(x): of_two(x) for x in node.input_tensors})
    # Some say no more than they were told; their mathematics does.
    by_call = functools.partial(keras.Operation.compute_output_spec, node.operation)
    ways = [node.operation.compute_output_spec, by_call]
    if isinstance(node.operation, keras.layers.Lambda):
        # It may be told how large each entry of the batch gets, never how many.
        ways.reverse()
    found = None
    for specify in ways:
        if found is not None and not any(None in shape for shape in found):
            break
        # Whatever a layer says to a batch that it was not made for.
        with contextlib.suppress(Exception):
            made = tree.flatten(specify(*args, **kwargs))
            found = [tuple(x.shape) for x in made]
    return found


def rows_of(node, shapes: list, inputs: dict, batch: int | None) -> list:
    """Returns, for each tensor that a node makes, its `rows`.

    Keras writes None for a batch, and for what is folded into one.

    Args:
        node: the node.
        shapes: the shapes of what it makes.
        inputs: by the id of a Keras tensor, its `Tensor`.
        batch: the batch that the model is made for, None if that is open.
    """
    firsts = [shape[0] if len(shape) else batch for shape in shapes]
    if batch is not None and None not in firsts:
        return [Fraction(first, batch) for first in firsts]
    given = [(x, inputs[id(x)].rows) for x in node.input_tensors]
    rows = max((rows for x, rows in given if None in x.shape), default=1)
    found = None
    if not _leaves_the_batch_alone(node.operation):
        found = _shapes_for_a_batch_of_two(node, inputs)
    result = []
    for number, (out, shape) in enumerate(zip(node.outputs, shapes, strict=True)):
        if out.shape and None not in out.shape:
            # The same for any batch, such as a table of positions.
            result.append(shape[0])
        elif found is None or not shape or None in found[number][:1]:
            result.append(rows)
        else:
            result.append(Fraction(found[number][0], _BATCH))
    return result


def _leaves_the_batch_alone(operation) -> bool:
    if not isinstance(operation, keras.layers.Layer):
        return False
    if isinstance(operation, keras.layers.Lambda):
        return False
    # What is made of layers is looked into, and those are asked.
    is_known = type(operation).__module__.startswith(("keras.", "tfprune."))
    return is_known or bool(operation._layers)


def _sizes_of_inputs(sizes: list, shapes: list) -> list:
    """Returns sizes behind the batch, the open ones those of an input of this rank."""
    alike = [shape[1:] for shape in shapes if len(shape) == len(sizes) + 1]
    stand_ins = alike[0] if alike else [OPEN_SIZES[0]] * len(sizes)
    return [m if n is None else n for n, m in zip(sizes, stand_ins, strict=True)]


def assumed_shape(keras_tensor, open_size: int = OPEN_SIZES[0]) -> tuple:
    """Returns the shape of an input with a stand-in for the sizes it leaves open."""
    first, *rest = keras_tensor.shape
    return (first, *(open_size if size is None else size for size in rest))


def assumed_shapes(functional: Functional) -> tuple[list, dict]:
    """Returns the shapes of a model's inputs and, by id, those of all its tensors.

    Sizes that the model leaves open are the first of `OPEN_SIZES` that it can take.
    """
    for open_size in OPEN_SIZES:
        inputs = [assumed_shape(x, open_size) for x in functional.inputs]
        try:
            return inputs, shapes_for(functional, inputs)
        except Exception:
            # Whatever a layer says to a size that it was not made for.
            if open_size == OPEN_SIZES[-1]:
                raise


def shapes_for(functional: Functional, inputs: list[tuple]) -> dict[int, tuple]:
    """Returns the shape of every tensor of a model, by id, for shapes of its inputs."""
    nodes = nodes_in_order(functional)
    pairs = list(zip(functional.inputs, inputs, strict=True))
    if all(shape[1:] == tuple(x.shape[1:]) for x, shape in pairs):
        return {id(x): tuple(x.shape) for node in nodes for x in node.outputs}
    tensors = {id(x): keras.KerasTensor(shape, x.dtype) for x, shape in pairs}
    for node in nodes:
        if any(id(x) not in tensors for x in node.input_tensors):
            continue
        args, kwargs = fill_in(node, tensors)
        outputs = tree.flatten(node.operation.compute_output_spec(*args, **kwargs))
        tensors.update((id(k), t) for k, t in zip(node.outputs, outputs, strict=True))
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}
