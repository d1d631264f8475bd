"""Layers made again: from their config or, where that is faulty, from attributes."""

import inspect
from collections.abc import Callable

import keras

from tfprune.graph.nodes import tree

_NOT_SHARED = (keras.layers.Layer, keras.Variable)


def made_again(layer, changes: Callable = lambda config: {}):
    """Returns an unbuilt copy of a layer.

    Args:
        layer: the layer.
        changes: function from its config to constructor arguments that differ.

    Raises:
        ValueError: if it cannot be made again.
    """
    config = {}
    try:
        config = dict(layer.get_config())
        return type(layer).from_config({**config, **changes(config)})
    except Exception as error:
        # Objects that Keras cannot serialize, or whatever its constructor makes of it.
        return _from_attributes(layer, changes(config), error)


def _from_attributes(layer, settings: dict, error: Exception):
    """Returns a copy made of the attributes named as the constructor's arguments.

    All of them must be there. A wrong one shows in shapes of weights, or in the outputs
    that are compared, unless it acts in training only.
    """
    kind, policy = type(layer), layer.dtype_policy
    # Keras records a policy by name as something that it can save.
    dtype = policy.name if type(policy) is keras.DTypePolicy else policy
    own = {"name": layer.name, "dtype": dtype, "trainable": layer.trainable}
    try:
        for name in _argument_names(kind):
            own.setdefault(name, settings.get(name, getattr(layer, name)))
        if any(isinstance(x, _NOT_SHARED) for x in tree.flatten(own)):
            raise TypeError("an argument that has weights would belong to both")
        return kind(**own)
    except Exception:
        raise ValueError(
            f"Layer {layer.name!r} cannot be rebuilt from its config. Give "
            f"{kind.__name__} a `get_config` with all of its constructor arguments, so "
            f"that `{kind.__name__}.from_config(layer.get_config())` works."
        ) from error


def _argument_names(kind: type) -> list[str]:
    parameters = inspect.signature(kind.__init__).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [each.name for each in parameters if each.kind in named][1:]
