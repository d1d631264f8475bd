"""Ways in which one layer is called: of several sizes, or with other arguments."""

from collections.abc import Iterable

import keras

from tfprune.graph.following import is_symbolic
from tfprune.graph.nodes import input_masks, tree


def without_training(kwargs: dict) -> dict:
    return {name: value for name, value in kwargs.items() if name != "training"}


def covers(general: tuple, given: tuple) -> bool:
    """Returns whether one call is an instance of another, with sizes left open in that.

    Args:
        general: `(args, kwargs)`, `KerasTensor`s in the place of tensors.
        given: likewise.
    """
    if _signature(given) != _signature(general):
        return False
    pairs = zip(shapes_in(general), shapes_in(given), strict=True)
    return all(n in (m, None) for one, other in pairs for n, m in zip(one, other))


def ways_to_call(given: tuple, others: Iterable[tuple]) -> list[tuple]:
    """Returns the arguments to follow a layer with, the ones to be tried first first.

    For a layer that is called on several sizes, such as the head of a detector, those
    in which the calls differ are left open. Then the arguments as they are given.

    Args:
        given: `(args, kwargs)` of a call.
        others: those of the layer's other calls.
    """
    alike = [each for each in others if _signature(each) == _signature(given)]
    columns = zip(*map(shapes_in, (given, *alike)), strict=True)
    shapes = [
        tuple(_common(sizes) for sizes in zip(*shapes, strict=True))
        for shapes in columns
    ]
    is_masked = any(mask is not None for mask in input_masks(given))
    if is_masked or shapes == shapes_in(given):
        return [given]
    rest = iter(shapes)
    general = tree.map_structure(
        lambda x: keras.KerasTensor(next(rest), x.dtype) if is_symbolic(x) else x, given
    )
    return [general, given]


def _common(sizes: tuple) -> int | None:
    return sizes[0] if len(set(sizes)) == 1 else None


def _signature(arguments: tuple) -> str:
    """Returns what a call depends on: ranks and types of tensors, other arguments."""
    args, kwargs = arguments

    def plain(x):
        return (len(x.shape), x.dtype) if is_symbolic(x) else repr(x)

    return repr(tree.map_structure(plain, (args, without_training(kwargs))))


def shapes_in(arguments: tuple) -> list[tuple]:
    return [tuple(x.shape) for x in tree.flatten(arguments) if is_symbolic(x)]
