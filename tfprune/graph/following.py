"""Following the `call` of a layer on symbolic inputs, so that Keras records it."""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from tfprune.graph.nodes import (
    Functional,
    forget_defaults,
    inside_call,
    nodes_in_order,
    tree,
    without_defaults,
)
from tfprune.graph.remaking import own_initializers
from tfprune.layers.swapping import replaced

_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


class NotOpened(Exception):
    """A layer cannot be taken apart; the message says why.

    Args:
        reason: the message.
        borrowed: variables of others that the layer reads.
    """

    def __init__(self, reason: str, borrowed=()):
        super().__init__(reason)
        self.borrowed = tuple(borrowed)


class OwnWeight(keras.layers.Layer):
    """A weight that a composite layer holds itself, as a tensor among its parts.

    Its copy in a new model is an `Embedding`, the one Keras layer that gives out a
    weight as it is: trained, counted and saved.

    Args:
        variable: the weight.
        initializer: function without arguments that returns what draws it anew.
    """

    def __init__(self, variable, initializer: Callable, **kwargs):
        super().__init__(**kwargs)
        self.variable = variable
        self.initializer = initializer
        *others, size = tuple(variable.shape) or (1,)
        self.table_shape = (int(np.prod(others)), size)
        self.built = True

    def call(self, x):
        weight = ops.convert_to_tensor(self.variable)
        if keras.backend.is_float_dtype(self.variable.dtype):
            # Keras would do so as the global policy says, for whoever uses the weight.
            weight = ops.cast(weight, self.compute_dtype)
        return weight if len(weight.shape) else ops.reshape(weight, (1,))

    def rows(self, x):
        """Returns the indices with which an `Embedding` gives out the whole weight.

        Args:
            x: any tensor; it is needed because Keras records only what is done to one.
        """
        zero = symbolic_zero(x, "int32")
        if len(self.variable.shape) < 2:
            return zero
        rows = np.arange(self.table_shape[0], dtype="int32")
        return zero + rows.reshape(self.variable.shape[:-1])

    def as_embedding(self, settings: dict) -> keras.layers.Embedding:
        """Returns the unbuilt layer that takes its place in a new model."""
        num_rows, size = self.table_shape
        arguments = {
            "input_dim": num_rows,
            "output_dim": size,
            "embeddings_initializer": "zeros",
            "embeddings_regularizer": self.variable.regularizer,
            "embeddings_constraint": self.variable.constraint,
            **settings,
        }
        return keras.layers.Embedding(
            **arguments,
            name=self.name,
            dtype=self.dtype_policy,
            trainable=self.trainable,
        )


def symbolic_zero(x, dtype: str):
    """Returns a zero that is made of a tensor, at no cost: the sum of no entries."""
    return ops.cast(ops.sum(x[..., :0]), dtype)


def follow(layer, inputs, args, kwargs, training: bool) -> Functional:
    """Calls a layer on symbolic inputs, its own weights being symbolic too."""
    weights = {k: v for k, v in vars(layer).items() if isinstance(v, keras.Variable)}
    names = {each.name for each in layer._flatten_layers()}
    initializers = functools.cache(lambda: own_initializers(layer))
    tensors = {
        k: _as_tensor(layer, k, v, inputs, names, lambda k=k: initializers()[k])
        for k, v in weights.items()
    }
    kwargs = {**kwargs, **training_argument(layer, training)}
    given = tree.map_structure(lambda x: _cast(layer, x), (args, kwargs))
    own = vars(layer)
    with (
        keras.StatelessScope(collect_losses=True) as scope,
        _anchored(layer, inputs[0]),
        _without_defaults(layer),
        _no_new_weights(layer),
    ):
        try:
            # Writing to the dict goes around the trackers, as in `SwapWrapper`.
            own.update(tensors)
            with inside_call(layer, training):
                outputs = layer.call(*given[0], **given[1])
        except NotOpened as error:
            raise NotOpened(first_line(error)) from error
        except Exception as error:
            why = f"its `call` cannot be followed: {first_line(error)}{_open(inputs)}"
            if "KerasTensor cannot be used as input to a TensorFlow" in str(error):
                why = "its `call` uses functions of `tf`: use those of `keras.ops`"
            raise NotOpened(why) from error
        finally:
            own.update(weights)
    if scope.losses or scope.state_mapping:
        raise NotOpened("its `call` adds losses or changes its state")
    flat = tree.flatten(outputs)
    if not flat or not all(map(is_symbolic, flat)):
        raise NotOpened("its `call` returns something that is no tensor of its inputs")
    graph = keras.Model(as_one_input(args, kwargs), outputs, name=layer.name)
    for node in nodes_in_order(graph):
        forget_defaults(node)
    return graph


def _open(inputs) -> str:
    """Returns what to say of inputs whose sizes a `call` may have asked for in vain."""
    shapes = [tuple(x.shape) for x in inputs if None in x.shape[1:]]
    return f" (its inputs leave sizes open: {shapes[0]})" if shapes else ""


def training_argument(layer, training: bool) -> dict:
    """Returns the keyword arguments with which a `call` is told about training."""
    takes_it = "training" in inspect.signature(layer.call).parameters
    return {"training": training} if takes_it else {}


def _as_tensor(layer, attribute: str, variable, inputs, names: set, initializer):
    name = attribute.strip("_")
    name = f"{name}_weight" if name in names else name
    weight = OwnWeight(
        variable,
        initializer,
        name=name,
        dtype=layer.dtype_policy,
        trainable=variable.trainable,
    )
    return weight(inputs[0])


def _cast(layer, x):
    """Does what Keras does to the arguments of a layer before its `call`."""
    if not is_symbolic(x) or not layer.autocast:
        return x
    is_float = keras.backend.is_float_dtype
    if x.dtype == layer.input_dtype or not (
        is_float(x.dtype) and is_float(layer.input_dtype)
    ):
        return x
    return ops.cast(x, layer.input_dtype)


def as_one_input(args: tuple, kwargs: dict):
    """Returns what a model in the place of a layer is called on.

    The one argument that holds all tensors, or else the list of all tensors.
    """
    tensors = [x for x in tree.flatten((args, kwargs)) if is_symbolic(x)]
    if args and [id(x) for x in tree.flatten(args[0])] == [id(x) for x in tensors]:
        return args[0]
    return tensors if len(tensors) > 1 else tensors[0]


def _anchored(layer, x):
    """Lets Keras record calls of inner layers on constants, too, such as positions.

    It records what is done to symbolic tensors only. A constant becomes one with a zero
    added that is made of `x`.
    """
    parts = layer._flatten_layers(include_self=False)
    return _replaced(
        [part for part in parts if part.variables],
        "call",
        lambda part, call: _recording(part, call, x),
    )


def _recording(layer, call: Callable, x) -> Callable:
    """Returns the `call` of a layer that records itself when it is run on constants."""
    is_inside = False

    @functools.wraps(call)
    def recording(*args, **kwargs):
        nonlocal is_inside
        constants = [
            each for each in tree.flatten((args, kwargs)) if _is_constant(each)
        ]
        if is_inside or not constants:
            return call(*args, **kwargs)
        is_inside = True
        try:
            args, kwargs = tree.map_structure(
                lambda each: (
                    symbolic_zero(x, each.dtype) + each if _is_constant(each) else each
                ),
                (args, kwargs),
            )
            return layer(*args, **kwargs)
        finally:
            is_inside = False

    return recording


@contextlib.contextmanager
def _replaced(layers, method: str, make: Callable):
    """Gives layers another method, made of the layer and the one it has, for a while."""
    with contextlib.ExitStack() as stack:
        for each in layers:
            function = make(each, getattr(each, method))
            stack.enter_context(replaced(each, method, function))
        yield


def _without_defaults(layer):
    """Keeps arguments that are None from a `compute_output_spec` that has no such ones.

    As of a subclass of `MultiHeadAttention` whose `call` takes more, such as a cache.
    """

    def make(part, specify):
        return lambda *args, **kwargs: specify(*args, **without_defaults(part, kwargs))

    parts = layer._flatten_layers(include_self=False)
    return _replaced(list(parts), "compute_output_spec", make)


def _no_new_weights(layer):
    """Refuses layers that are not built, if they are called and have weights."""

    def make(part, add_weight):
        def refusing(*args, **kwargs):
            raise NotOpened(f"{part.name!r} in it is not built, call it on data first")

        return refusing

    unbuilt = [x for x in layer._flatten_layers() if not x.built]
    return _replaced(unbuilt, "add_weight", make)


def _is_constant(x) -> bool:
    """Returns whether `x` is a tensor with a value, not one of a graph being made."""
    if is_symbolic(x) or not ops.is_tensor(x):
        return False
    try:
        return ops.convert_to_numpy(x) is not None
    except NotImplementedError:
        return False


def is_symbolic(x) -> bool:
    return isinstance(x, keras.KerasTensor)


def first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    # Keras puts a line of its own before the message, and makes that bold.
    lines = [_ESCAPE.sub("", line) for line in lines if "encountered when" not in line]
    return lines[0].strip() if lines else type(error).__name__
