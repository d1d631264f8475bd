"""Shapes of tensors where a model leaves sizes open."""

import keras

from tfprune.graph.nodes import Functional, fill_in, nodes_in_order, tree

# Stands in for a size that the model leaves open, such as the height of an image.
OPEN_SIZE = 224


def closed_shape(shape: tuple, inputs: list) -> list:
    """Returns a shape with the sizes that Keras leaves open, taken from the inputs.

    Args:
        shape: the shape, that of the batch included.
        inputs: what the tensor is made of, anything with a `shape` without open sizes.
    """

    def size_of(axis: int) -> int:
        sizes = [x.shape[axis] for x in inputs if len(x.shape) == len(shape)]
        return sizes[0] if sizes else OPEN_SIZE

    return [size_of(a) if n is None and a else n for a, n in enumerate(shape)]


def assumed_shape(keras_tensor) -> tuple:
    """Returns the shape of an input with a stand-in for the sizes it leaves open."""
    first, *rest = keras_tensor.shape
    return (first, *(OPEN_SIZE if size is None else size for size in rest))


def infer_shapes(functional: Functional, inputs: list) -> dict[int, tuple]:
    """Returns the shape of every tensor of a model for other input shapes."""
    tensors = {
        id(k): keras.KerasTensor(t.shape, k.dtype)
        for k, t in zip(functional.inputs, inputs, strict=True)
    }
    for node in nodes_in_order(functional):
        if any(id(x) not in tensors for x in node.input_tensors):
            continue
        args, kwargs = fill_in(node, tensors)
        outputs = tree.flatten(node.operation.compute_output_spec(*args, **kwargs))
        tensors.update((id(k), t) for k, t in zip(node.outputs, outputs, strict=True))
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}
