"""Layers and what they were taken apart into, run side by side."""

import contextlib
import itertools

import keras
import numpy as np
from keras import ops

from tfprune.graph.any_size import MOST_LENGTHS
from tfprune.graph.following import (
    NotOpened,
    first_line,
    is_symbolic,
    training_argument,
)
from tfprune.graph.nodes import Functional, input_structure, tree
from tfprune.graph.shapes import OPEN_SIZES, assumed_shape
from tfprune.graph.signatures import covers, shapes_in, without_training


def compare(layer, graph: Functional, args, kwargs) -> None:
    """Runs a layer and its parts on random inputs, with other weights than it has."""
    random = np.random.default_rng(0)
    reason = ""
    with _other_weights(layer, random):
        # Layers are many, so the sizes of images are left out.
        for size in (each for each in OPEN_SIZES if each <= 64):
            taken = 0
            for sizes in _lengths(graph.inputs, size):
                pairs = zip(graph.inputs, sizes, strict=True)
                probes = {id(x): _probe(random, x, each) for x, each in pairs}
                try:
                    expected = _called_on(probes, layer, args, kwargs)
                except Exception as error:
                    reason = reason or f"it cannot be run: {first_line(error)}"
                    continue
                _demand_equal(expected, graph, probes)
                taken += 1
            if taken:
                return
    raise NotOpened(reason)


def compare_calls(layer, graph: Functional, general, calls) -> None:
    """Runs a layer and its parts on the sizes of its calls, which it may ask for."""
    random = np.random.default_rng(0)
    taken = {tuple(shapes_in(each)): each for each in calls if covers(general, each)}
    with _other_weights(layer, random):
        for shapes, (args, kwargs) in taken.items():
            if any(None in shape[1:] for shape in shapes):
                continue
            kwargs = without_training(kwargs)
            given = [x for x in tree.flatten((args, kwargs)) if is_symbolic(x)]
            values = [_probe(random, x, samples=1) for x in given]
            probes = {id(x): each for x, each in zip(given, values, strict=True)}
            try:
                expected = _called_on(probes, layer, args, kwargs)
            except Exception as error:
                raise NotOpened(f"it cannot be run: {first_line(error)}") from error
            own = {id(x): v for x, v in zip(graph.inputs, values, strict=True)}
            _demand_equal(expected, graph, own)


@contextlib.contextmanager
def _other_weights(layer, random):
    """Has a layer compute with other weights than it has, and with no other's."""
    values = [(v, _perturbed(random, v)) for v in layer.variables]
    own = {id(variable) for variable in layer.variables}
    with _Watching(state_mapping=values) as scope:
        yield
    borrowed = [variable for key, variable in scope.read.items() if key not in own]
    if borrowed:
        raise NotOpened("its `call` uses weights that are not its own", borrowed)


class _Watching(keras.StatelessScope):
    """Notes `{id(variable): variable}` of those that are read in it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.read = {}

    def get_current_value(self, variable):
        self.read[id(variable)] = variable
        return super().get_current_value(variable)


def _lengths(inputs, size: int):
    """Yields what may stand for the open sizes of each input: equal ones first.

    And all ways to make some of them shorter, of which the layer takes those that leave
    a sequence and its mask alike: no part may take one's length for another's.
    """
    is_open = [None in x.shape[1:] for x in inputs]
    others = max(sum(is_open) - 1, 0)
    choices = (size, size - 1) if others < MOST_LENGTHS else (size,)
    for lengths in itertools.product(choices, repeat=others):
        rest = iter((size, *lengths))
        yield [next(rest) if each else size for each in is_open]


def _called_on(probes: dict, layer, args, kwargs):
    args, kwargs = tree.map_structure(lambda x: probes.get(id(x), x), (args, kwargs))
    return layer(*args, **kwargs, **training_argument(layer, False))


def _demand_equal(expected, graph: Functional, probes: dict) -> None:
    inputs = tree.map_structure(lambda x: probes[id(x)], input_structure(graph))
    try:
        received = graph(inputs)
    except Exception as error:
        raise NotOpened(f"its parts cannot be run: {first_line(error)}") from error
    pairs = zip(tree.flatten(expected), tree.flatten(received), strict=True)
    if not all(_are_equal(a, b) for a, b in pairs):
        raise NotOpened("its parts by themselves compute something else")


def _perturbed(random, variable):
    if not keras.backend.is_float_dtype(variable.dtype):
        return ops.convert_to_tensor(variable)
    value = np.asarray(variable.numpy(), np.float64)
    # Variances stay positive.
    value = value * random.uniform(0.5, 1.5, value.shape)
    value += random.uniform(0, 0.1, value.shape)
    return ops.cast(value, variable.dtype)


def _probe(random, keras_tensor, size: int = OPEN_SIZES[0], samples: int = 2):
    first, *rest = assumed_shape(keras_tensor, size)
    shape = [first or samples, *rest]
    if keras.backend.is_float_dtype(keras_tensor.dtype):
        return ops.cast(random.normal(size=shape), keras_tensor.dtype)
    return ops.cast(random.integers(0, 2, shape), keras_tensor.dtype)


def _are_equal(expected, received) -> bool:
    if expected.dtype != received.dtype or expected.shape != received.shape:
        return False
    a, b = (
        ops.convert_to_numpy(ops.cast(each, "float64")) for each in (expected, received)
    )
    tolerance = 1e-5 * max(np.abs(a).max(initial=0.0), 1e-30)
    return np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True)
