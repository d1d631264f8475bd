"""Layers and operations made again: from their config or, if faulty, from attributes."""

import contextlib
import inspect
from collections.abc import Callable

import keras
import numpy as np

from tfprune.graph.nodes import Operation, flatten_layers, tree
from tfprune.layers.swapping import SwapWrapper

_NOT_SHARED = (keras.layers.Layer, keras.Variable)
_LOOKUPS = (
    keras.layers.StringLookup,
    keras.layers.IntegerLookup,
    keras.layers.TextVectorization,
)

# Ends of the names of arguments that are functions, or objects called like them.
_OBJECTS = ("activation", "regularizer", "constraint", "initializer")


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
        if isinstance(layer, _LOOKUPS) and config.get("vocabulary", ()) is None:
            config |= _adapted(layer)
        twin = type(layer).from_config({**config, **changes(config)})
        _adapt_parts(layer, twin)
        return twin
    except Exception as error:
        # Objects that Keras cannot serialize, or whatever its constructor makes of it.
        settings = changes(config)
        if config and _is_of(layer, "keras.", "tfprune."):
            with contextlib.suppress(Exception):
                known = {**config, **_known(layer, config), **settings}
                return _made_of(type(layer), known)
        return _from_attributes(layer, settings, error)


def _is_of(value, *packages: str) -> bool:
    return type(value).__module__.startswith(packages)


def _made_of(kind, config: dict):
    if issubclass(kind, keras.layers.Wrapper) and not issubclass(kind, SwapWrapper):
        # It would load the layer inside, which is there already.
        return kind(**config)
    return kind.from_config(config)


def _known(holder, config: dict) -> dict:
    """Returns activations and the like, as they are if they have no known name.

    And a copy of the layer inside a wrapper.
    """
    own = {**vars(getattr(holder, "cell", holder)), **vars(holder)}
    known = {
        name: _loadable(own.get(name, own.get(f"_{name}", saved)), saved)
        for name, saved in config.items()
        if name.endswith(_OBJECTS)
    }
    if isinstance(holder, keras.layers.Wrapper):
        known["layer"] = made_again(holder.layer)
    return known


def _loadable(value, saved):
    """Returns the config of an object if Keras can load it, else the object.

    What tfprune has put beside a term without a name is made again around it.
    """
    try:
        keras.saving.deserialize_keras_object(saved)
        return saved
    except Exception:
        if _is_of(value, "tfprune."):
            config = value.get_config()
            return type(value).from_config({**config, **_known(value, config)})
        if isinstance(value, _NOT_SHARED):
            raise
        return value


def _adapted(layer) -> dict:
    """Returns what `adapt` has found, which is in no config and no variable."""
    words = layer.get_vocabulary(include_special_tokens=False)
    if not len(words):
        return {}
    found = {"vocabulary": [_plain_number(word) for word in words]}
    table = getattr(layer, "_lookup_layer", layer)
    if table.output_mode == "tf_idf":
        special = len(layer.get_vocabulary()) - len(words)
        weights = table.idf_weights.numpy()[special : special + len(words)]
        found["idf_weights"] = weights.tolist()
    return found


def _adapt_parts(layer, twin) -> None:
    """Gives lookups inside a copy what `adapt` has found in those of its layer."""
    for part, own in zip(layer._flatten_layers(False), twin._flatten_layers(False)):
        if isinstance(part, _LOOKUPS) and type(own) is type(part):
            found = _adapted(part)
            if found and len(own.get_vocabulary()) < len(part.get_vocabulary()):
                own.set_vocabulary(**found)


def _unknown_names(layer) -> list[str]:
    """Returns the names of functions and classes in a layer that are not registered."""
    values = [
        value
        for part in flatten_layers(layer)
        for name, value in vars(part).items()
        if name.endswith(_OBJECTS) and value is not None
    ]
    kinds = [x if inspect.isfunction(x) else type(x) for x in values]
    registered = keras.saving.get_registered_name
    names = [
        kind.__name__
        for kind in kinds
        if registered(kind) == kind.__name__
        and not kind.__module__.startswith("keras.")
    ]
    return list(dict.fromkeys(names))


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
        for name in argument_names(kind.__init__)[1:]:
            own.setdefault(name, settings.get(name, getattr(layer, name)))
        if any(isinstance(x, _NOT_SHARED) for x in tree.flatten(own)):
            raise TypeError("an argument that has weights would belong to both")
        return kind(**own)
    except Exception:
        advice = (
            f"Give {kind.__name__} a `get_config` with all of its constructor "
            f"arguments, so that `{kind.__name__}.from_config(layer.get_config())` "
            "works."
        )
        unknown = _unknown_names(layer)
        if unknown and _is_of(layer, "keras."):
            advice = (
                f"Keras does not know {', '.join(unknown)} by name: put "
                "`@keras.saving.register_keras_serializable()` before the definition"
                f"{' of a function with a name' * ('<lambda>' in unknown)}."
            )
        raise ValueError(
            f"Layer {layer.name!r} cannot be rebuilt from its config. {advice}"
        ) from error


def alter_kernels(old, new) -> None:
    """Quantizes layers in a built copy, and enables LoRA in them, as in the original.

    The config of a layer made of others, such as an attention, says neither.

    Args:
        old: layer or operation.
        new: its copy.
    """
    if not isinstance(old, keras.layers.Layer):
        return
    for part, twin in zip(flatten_layers(old), flatten_layers(new), strict=False):
        mode = getattr(part, "quantization_mode", None)
        if mode is not None and getattr(twin, "quantization_mode", mode) is None:
            twin.quantize(mode, config=part.quantization_config)
        has_lora = getattr(part, "lora_enabled", False)
        if has_lora and not getattr(twin, "lora_enabled", True):
            twin.enable_lora(part.lora_rank, lora_alpha=part.lora_alpha)


def own_initializers(layer) -> dict:
    """Returns `{attribute: initializer}` of the weights that a layer holds itself.

    Layers do not keep what they give to `add_weight`: a copy is built and listened to.
    """
    asked: dict[int, object] = {}
    try:
        twin = made_again(layer)
        for each in twin._flatten_layers():
            _listen(each, asked)
        twin.build_from_config(layer.get_build_config())
    except Exception:
        # Its own weights say at least how large they are.
        twin = layer
    found = {}
    for name, variable in vars(layer).items():
        if isinstance(variable, keras.Variable):
            drawn = vars(twin).get(name)
            drawn = drawn if isinstance(drawn, keras.Variable) else variable
            initializer = asked.get(id(drawn))
            # A function has no name to be loaded by.
            is_one = isinstance(initializer, keras.initializers.Initializer)
            found[name] = initializer if is_one else like_values(drawn.numpy())
    return found


def _listen(layer, asked: dict) -> None:
    """Notes `{id(variable): initializer}` of the weights that a layer will add."""
    add_weight = layer.add_weight

    def listening(shape=None, initializer=None, *args, **kwargs):
        # Drawing numbers would be waste.
        variable = add_weight(shape, "zeros", *args, **kwargs)
        asked[id(variable)] = keras.initializers.get(initializer or "glorot_uniform")
        return variable

    # Around the trackers, which are for layers and variables.
    vars(layer)["add_weight"] = listening


def like_values(values: np.ndarray):
    """Returns an initializer of numbers with the same mean and deviation."""
    mean, deviation = float(np.mean(values)), float(np.std(values))
    if not deviation:
        return keras.initializers.Constant(mean)
    return keras.initializers.RandomNormal(mean, deviation)


def copy_operation(operation: Operation, settings: dict) -> Operation:
    """Returns a copy of a weightless operation that belongs to no graph yet.

    Args:
        operation: the operation.
        settings: constructor arguments that differ.
    """
    try:
        return type(operation).from_config({**operation.get_config(), **settings})
    except NotImplementedError:
        # It has arguments that Keras cannot save.
        return _copy_of_attributes(operation, settings)


def _copy_of_attributes(operation: Operation, settings: dict) -> Operation:
    """Returns a copy whose numbers are Python's, which Keras can save."""
    twin = object.__new__(type(operation))
    vars(twin).update(vars(operation), _inbound_nodes=[], _outbound_nodes=[])
    vars(twin).update(settings)
    plain = tree.map_structure(_plain_number, _attributes(twin))
    try:
        names = argument_names(type(operation).__init__)[1:]
        again = type(operation)(**{name: plain[name] for name in names})
    except Exception:
        return twin
    # A constructor may keep something else than its argument by the argument's name.
    return again if _same(_attributes(again), plain) else twin


def _attributes(operation: Operation) -> dict:
    return {k: v for k, v in vars(operation).items() if not k.startswith("_")}


def _plain_number(value):
    return value.item() if isinstance(value, np.generic) else value


def _same(one: dict, other: dict) -> bool:
    values = tree.flatten(one), tree.flatten(other)
    return (
        one.keys() == other.keys()
        and len(values[0]) == len(values[1])
        and all(map(np.array_equal, *values))
    )


def argument_names(function: Callable) -> list[str]:
    """Returns the names of a function's arguments, `self` among them."""
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [each.name for each in parameters if each.kind in named]
