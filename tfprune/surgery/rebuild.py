"""Rebuilding: a new model from an old one, operation by operation."""

from collections.abc import Callable

import keras
import numpy as np

from tfprune.graph.following import OwnWeight, as_one_input
from tfprune.graph.nodes import (
    Functional,
    as_functional,
    class_for_copies,
    fill_in,
    flatten_layers,
    input_layer_of,
    input_structure,
    is_recorded,
    model_of_steps,
    nodes_in_order,
    object_sharing_scope,
    output_structure,
    share_copy,
    tree,
)
from tfprune.graph.remaking import (
    alter_kernels,
    copy_operation,
    made_again,
)
from tfprune.graph.subclassed import as_recorded
from tfprune.surgery.added import copy_terms
from tfprune.surgery.initializers import (
    copy_initializers,
    fitting,
    fresh_initializers,
    initializers_of,
)

_ZEROS = keras.initializers.Zeros()


class Rebuilder:
    """Makes a new model of new operations that are wired like the old ones.

    Shared and tied layers stay shared: every operation is made once, also across
    nested models. The old model is only read; the new one is not compiled.

    Args:
        make: function `(operation, path) -> new operation`.
        rewrite: function `(node, args, kwargs) -> (args, kwargs)` for literals in
            recorded calls. By default they are kept.
        input_shapes: function `(Functional) -> shapes of its inputs`. By default they
            are kept.
        parts: function from a layer to the `Functional` to make a nested model of in
            its place, None for layers that stay whole. By default all do.
        before: function from an operation to a new layer for its input to go through
            first, or None. By default there is none.
        after: function `(node, outputs, tensors) -> outputs` of what a new operation
            returned, with `{id(old tensor): new tensor}` of all that was made before.
            Sequential models become Functional then. By default outputs stay.
    """

    def __init__(
        self,
        make: Callable,
        rewrite: Callable | None = None,
        input_shapes: Callable | None = None,
        parts: Callable | None = None,
        before: Callable | None = None,
        after: Callable | None = None,
    ):
        self._make = make
        self._rewrite = rewrite or (lambda node, args, kwargs: (args, kwargs))
        self._input_shapes = input_shapes or (lambda m: [x.shape for x in m.inputs])
        self._parts = parts or (lambda layer: None)
        self._before = before or (lambda operation: None)
        self._after = after
        self._new_before: dict[int, object] = {}
        self._new: dict[int, object] = {}
        self.pairs: list[tuple] = []

    def model(self, model, prefix: str = ""):
        """Returns the new model; `pairs` then lists (old, new) operations."""
        model = as_recorded(model)
        # Rebuilding under one scope keeps objects shared that share an id.
        with object_sharing_scope():
            new = self._model(model, prefix)
        if not prefix:
            self._copy_flags_and_names(model, new)
        return new

    def _model(self, model, prefix: str):
        if id(model) not in self._new:
            in_a_row = _is_sequential(model) and self._after is None
            build = self._sequential if in_a_row else self._functional
            self._new[id(model)] = build(model, as_functional(model), prefix)
        return self._new[id(model)]

    def _opened(self, layer, parts: Functional, prefix: str):
        if id(layer) not in self._new:
            self._new[id(layer)] = self._functional(layer, parts, prefix)
        return self._new[id(layer)]

    def _steps(self, layer, prefix: str):
        """Returns a new `TimeDistributed` around the new model."""
        if id(layer) not in self._new:
            config = {k: v for k, v in layer.get_config().items() if k != "layer"}
            config["dtype"] = layer.dtype_policy
            model = self._model(layer.layer, prefix)
            self._new[id(layer)] = type(layer)(model, **config)
        return self._new[id(layer)]

    def _operation(self, operation, prefix: str):
        path = f"{prefix}{operation.name}"
        if is_recorded(operation):
            return self._model(operation, f"{path}/")
        if model_of_steps(operation) is not None:
            return self._steps(operation, f"{path}/")
        parts = self._parts(operation)
        if parts is not None:
            return self._opened(operation, parts, f"{path}/")
        if id(operation) not in self._new:
            self._new[id(operation)] = new = self._make(operation, path)
            share_copy(operation, new)
            self.pairs.append((operation, new))
        return self._new[id(operation)]

    def _layer_before(self, operation):
        if id(operation) not in self._new_before:
            self._new_before[id(operation)] = self._before(operation)
        return self._new_before[id(operation)]

    def _sequential(self, model, functional, prefix: str):
        layers = []
        for layer in model.layers:
            first = self._layer_before(layer)
            layers += [first] if first else []
            layers.append(self._operation(layer, prefix))
        (new_input,) = self._inputs(functional)
        is_plain = type(model).__init__ is keras.Sequential.__init__
        kind = type(model) if is_plain else keras.Sequential
        return kind([new_input, *layers], name=model.name)

    def _functional(self, model, functional, prefix: str):
        new_inputs = self._inputs(functional)
        tensors = {
            id(old): new.output
            for old, new in zip(functional.inputs, new_inputs, strict=True)
        }
        for node in nodes_in_order(functional):
            if any(id(x) not in tensors for x in node.input_tensors):
                continue
            args, kwargs = self._rewrite(node, *fill_in(node, tensors))
            new = self._operation(node.operation, prefix)
            args, kwargs = _arguments_for(new, node.operation, args, kwargs)
            first = self._layer_before(node.operation)
            if first:
                args, kwargs = (first(as_one_input(args, kwargs)),), {}
            outputs = new(*args, **kwargs)
            if self._after is not None:
                outputs = self._after(node, outputs, tensors)
            flat = tree.flatten(outputs)
            tensors.update((id(k), t) for k, t in zip(node.outputs, flat, strict=True))
        inputs, outputs = (
            tree.map_structure(lambda k: tensors[id(k)], structure)
            for structure in (input_structure(functional), output_structure(functional))
        )
        return class_for_copies(model)(inputs, outputs, name=model.name)

    def _inputs(self, functional) -> list:
        """Returns new input layers like those of the old model."""
        inputs, shapes = [], self._input_shapes(functional)
        for old, shape in zip(functional.inputs, shapes, strict=True):
            config = {**input_layer_of(old).get_config(), "batch_shape": shape}
            inputs.append(keras.layers.InputLayer.from_config(config))
        return inputs

    def _copy_flags_and_names(self, model, new) -> None:
        """Copies the flags from the outside in, as setting one sets all inside it.

        And the policies of models, and the names of layers inside others, which Keras
        may have numbered on.
        """
        for old, twin in [(model, new), *self._models_of(model)]:
            twin.trainable = old.trainable
            if old.dtype_policy.quantization_mode is None:
                # It says whether `compile` scales the loss.
                twin.dtype_policy = old.dtype_policy
        for old, twin in self.pairs:
            if isinstance(old, keras.layers.Layer):
                twin.trainable = old.trainable
                old_parts, new_parts = flatten_layers(old), flatten_layers(twin)
                for part, twin_part in zip(old_parts, new_parts, strict=False):
                    twin_part.trainable = part.trainable
                    if type(twin_part) is type(part):
                        twin_part.name = part.name

    def _models_of(self, model):
        for layer in model.layers:
            layer = model_of_steps(layer) or layer
            parts = self._parts(layer)
            is_model = parts is not None or isinstance(layer, keras.Model)
            if is_model and id(layer) in self._new:
                yield layer, self._new[id(layer)]
                yield from self._models_of(layer if parts is None else parts)


def _is_sequential(operation) -> bool:
    return isinstance(operation, keras.Sequential)


def _arguments_for(new, old, args, kwargs):
    """Returns the arguments for what has taken the place of an operation."""
    if isinstance(old, OwnWeight):
        return (old.rows(*args),), {}
    if isinstance(new, Functional) and not isinstance(old, keras.Model):
        training = {k: v for k, v in kwargs.items() if k == "training"}
        return (as_one_input(args, kwargs),), training
    return args, kwargs


def copy_model(model):
    """Returns a new model with the layers, gates, wiring and weights of a model."""
    rebuilder = Rebuilder(lambda operation, path: copy_operation_like(operation))
    new = rebuilder.model(model)
    for old, twin in rebuilder.pairs:
        copy_state(old, twin)
    return new


def with_new_weights(model):
    """Returns a copy of a model with the weights that its initializers draw.

    Layers that do not train, such as a `Normalization` of the data, keep theirs.
    """
    rebuilder = Rebuilder(lambda op, path: copy_operation_like(op, draw=True))
    new = rebuilder.model(model)
    for old, twin in rebuilder.pairs:
        if not getattr(old, "trainable_variables", None):
            copy_state(old, twin)
        else:
            alter_kernels(old, twin)
            copy_terms(old, list(_paired(old.variables, twin.variables)))
    return new


def copy_operation_like(
    operation,
    settings: dict | None = None,
    draw: bool = False,
    value_of: Callable | None = keras.Variable.numpy,
):
    """Returns an unbuilt copy of a layer or operation, with its name.

    Args:
        operation: layer or operation.
        settings: constructor arguments that differ.
        draw: whether its weights will be what its initializers draw.
        value_of: function from a variable to the array that its copy starts with,
            which spares a `copy_state` with the same function the assignment; by
            default to its value. Its memory may become the copy's own. None for zeros.
    """
    settings = settings or {}
    if isinstance(operation, OwnWeight):
        return operation.as_embedding(settings)
    if not isinstance(operation, keras.layers.Layer):
        return copy_operation(operation, settings)
    if isinstance(operation, keras.layers.Lambda):
        return _copy_lambda(operation)

    def arguments(config):
        lean = _lean_arguments(operation, config, value_of)
        drawn = fresh_initializers(operation, config) if draw else {}
        return {**lean, **drawn, **settings}

    is_keras = type(operation).__module__.startswith("keras.")
    return made_again(operation, arguments if is_keras else lambda config: settings)


def _lean_arguments(layer, config: dict, value_of) -> dict:
    """Returns arguments that are quicker or safer than what the config says."""
    own = vars(layer)
    arguments = {
        name: _starting_value(own, name.removesuffix("_initializer"), value_of)
        for name in config
        if name.endswith("_initializer") and name in own
    }
    activation = own.get("activation")
    if callable(activation) and not isinstance(activation, keras.layers.Layer):
        # As an object it needs no name that Keras can look up again.
        arguments["activation"] = activation
    return arguments


def _starting_value(own: dict, name: str, value_of: Callable | None):
    """Returns an initializer for a variable that gets its value anyway."""
    source = own.get(name, own.get(f"_{name}"))
    if value_of is None or not isinstance(source, keras.Variable):
        # Drawing random numbers would be waste.
        return _ZEROS
    return _Given(source, value_of)


class _Given:
    """An initializer that gives a variable the value it would be assigned later."""

    def __init__(self, source, value_of: Callable):
        self.source = source
        self.value_of = value_of
        self.was_used = False

    def __call__(self, shape, dtype=None):
        value = self.value_of(self.source)
        if value.shape != tuple(shape):
            # `copy_state` says what is wrong.
            return keras.ops.zeros(shape, dtype)
        self.was_used = True
        return value


def _copy_lambda(layer):
    return type(layer)(
        layer.function,
        output_shape=layer._output_shape,
        mask=layer.mask,
        arguments=layer.arguments,
        name=layer.name,
        dtype=layer.dtype_policy,
        trainable=layer.trainable,
    )


def copy_state(old, new, value_of: Callable = keras.Variable.numpy):
    """Gives a built copy what its layer has that a constructor does not give it.

    The variables, in order, whether each trains, what was set on them themselves, what
    `adapt` has found, and the initializers.

    Args:
        old: the layer to read; operations without variables are passed over.
        new: its copy.
        value_of: function from an old variable to the array for the new one.
    """
    alter_kernels(old, new)
    old_variables = getattr(old, "variables", ())
    new_variables = getattr(new, "variables", ())
    if len(old_variables) != len(new_variables):
        raise ValueError(
            f"Layer {old.name!r} ({type(old).__name__}) has {len(old_variables)} "
            f"variables, its copy {len(new_variables)}: its `get_config` does not "
            "describe it fully."
        )
    given = {
        id(each.source)
        for each in initializers_of(new).values()
        if isinstance(each, _Given) and each.was_used and each.value_of is value_of
    }
    pairs = list(_paired(old_variables, new_variables))
    copy_terms(old, pairs)
    for source, target in pairs:
        if target.trainable != source.trainable:
            target.trainable = source.trainable
        if id(source) in given:
            continue
        value = np.asarray(value_of(source))
        if isinstance(old, OwnWeight):
            value = value.reshape(target.shape[0], -1)
        if tuple(target.shape) != value.shape:
            raise ValueError(
                f"Variable {source.path!r} of layer {old.name!r} has shape "
                f"{value.shape} but its copy was built with {tuple(target.shape)}."
            )
        target.assign(value)
    if isinstance(old, OwnWeight):
        shape = new.embeddings.shape
        new.embeddings_initializer = fitting(old.initializer(), shape)
    elif isinstance(old, keras.layers.Layer):
        copy_initializers(old, new)
        for part, twin in zip(flatten_layers(old), flatten_layers(new), strict=False):
            if isinstance(twin, keras.layers.Normalization):
                # It computes with constants, made of its variables some time before.
                twin.mean, twin.variance = part.mean, part.variance


def _paired(old_variables, new_variables):
    """Pairs variables by name where names tell, else by their order."""
    # A layer that was quantized after it was built has them in another order.
    named = {variable.name: variable for variable in new_variables}
    names = [variable.name for variable in old_variables]
    if len(named) == len(new_variables) and named.keys() == set(names):
        new_variables = [named[name] for name in names]
    return zip(old_variables, new_variables, strict=True)
