"""Layers of a user's own, and the invariants of models that are made of them."""

import types

import checker
import keras
import numpy as np
from invariants import fingerprint, random_masks, saved_and_loaded
from keras import layers, ops

import tfprune
from tfprune.surgery import set_masks

register = keras.saving.register_keras_serializable("tfprune_tests")


@register
class Own(layers.Layer):
    """A layer that is rebuilt from its constructor arguments."""

    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, shape):
        # Parts of a layer have to be built with it to be there when it is loaded.
        for part in self._layers:
            part.build(shape)
            shape = part.compute_output_shape(shape)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@register
class Chain(Own):
    """conv - BN - relu - conv."""

    def __init__(self, width=8, out=8, **kwargs):
        super().__init__(width, **kwargs)
        self.out = out
        self.one = layers.Conv2D(width, 3, padding="same", name="one")
        self.bn = layers.BatchNormalization(name="bn")
        self.two = layers.Conv2D(out, 3, padding="same", name="two")

    def call(self, x, training=None):
        x = ops.relu(self.bn(self.one(x), training=training))
        return self.two(x)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.out)

    def get_config(self):
        return {**super().get_config(), "out": self.out}


@register
class Residual(Chain):
    """x + gamma * chain(x), the gamma being the layer's own."""

    def build(self, shape):
        super().build(shape)
        self.gamma = self.add_weight(shape=(shape[-1],), name="gamma")

    def call(self, x, training=None):
        return x + self.gamma * super().call(x, training=training)


def around(*own, channels=8, size=8):
    """conv - the layers in between - conv - pooling - logits, all weights random."""
    inputs = layers.Input((size, size, 3), name="image")
    x = layers.Conv2D(channels, 3, padding="same", activation="relu", name="a")(inputs)
    for layer in own:
        x = layer(x)
    x = layers.Conv2D(6, 3, activation="relu", name="b")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return checker.randomize(keras.Model(inputs, layers.Dense(3, name="logits")(x)))


def check_own(model, *loses, skipped=(), inputs=None, wrap=True, saves=True):
    """Every invariant of a model with layers of its own; returns the small model."""
    before, graph = fingerprint(model), tfprune.Graph(model)
    assert graph.skipped.keys() == set(skipped), graph.skipped
    masks = random_masks(graph)
    assert set(loses) <= set(graph.layer_masks(masks)), graph.locked
    inputs = checker.make_inputs(graph.model) if inputs is None else inputs
    small, masked = tfprune.compact(model, masks), tfprune.apply_masks(model, masks)
    outputs = [checker.outputs_of(each, inputs) for each in (model, masked, small)]
    assert checker.relative_error(outputs[1], outputs[2]) <= 1e-5
    assert checker.relative_error(outputs[0], outputs[2]) > 1e-3, "blind"
    check_slices(model, small, masked)
    assert tfprune.cost(model, masks) == tfprune.cost(small)
    assert tfprune.cost(small).params == small.count_params()
    assert tfprune.cost(model).params == model.count_params()
    assert tfprune.read_masks(masked) == masks
    stations = [small, masked]
    if wrap:
        stations.append(_check_wrapped(model, graph, masks, outputs, inputs))
    for station in stations if saves else ():
        loaded = checker.outputs_of(saved_and_loaded(station), inputs)
        error = checker.relative_error(checker.outputs_of(station, inputs), loaded)
        assert error == 0
    assert fingerprint(model) == before, "the original was changed"
    return small


def _check_wrapped(model, graph, masks, outputs, inputs):
    wrapped = tfprune.prune_wrap(model)
    gated = tfprune.Graph(wrapped)
    groups = [[(g.name, g.size) for g in each.groups] for each in (graph, gated)]
    assert groups[0] == groups[1]
    assert tfprune.cost(gated, masks) == tfprune.cost(graph, masks)
    same = checker.outputs_of(wrapped, inputs)
    assert checker.relative_error(outputs[0], same) <= 1e-5
    set_masks(gated, masks)
    closed = checker.outputs_of(wrapped, inputs)
    assert checker.relative_error(outputs[1], closed) <= 1e-5
    stripped = checker.outputs_of(tfprune.strip(wrapped), inputs)
    assert checker.relative_error(closed, stripped) <= 1e-5
    assert tfprune.read_masks(wrapped) == masks
    compacted = tfprune.compact(wrapped)
    assert tfprune.cost(compacted) == tfprune.cost(graph, masks)
    return wrapped


def check_slices(model, small, masked) -> None:
    """Small weights are slices of the old ones, and masked ones zero elsewhere."""
    old, new, zeroed = (weights_by_path(each) for each in (model, small, masked))
    assert old.keys() == new.keys() == zeroed.keys()
    for path, value in new.items():
        before = old[path].reshape(zeroed[path].shape)
        stays = np.zeros(before.shape, bool)
        stays[np.ix_(*checker._slice_of(path, _array(before), _array(value)))] = True
        assert np.array_equal(zeroed[path], np.where(stays, before, 0)), path


def _array(value):
    return types.SimpleNamespace(
        numpy=lambda: value, ndim=value.ndim, dtype=value.dtype, shape=value.shape
    )


def weights_by_path(model) -> dict:
    """Returns every weight under its path, those of a user's own layers by name."""
    found = {}

    def walk(layer, path):
        is_own = not type(layer).__module__.startswith("keras.") and layer._layers
        if isinstance(layer, keras.Model) or is_own:
            own = layer._trainable_variables + layer._non_trainable_variables
            found.update({f"{path}{v.name}/0": v.numpy() for v in own})
            for part in layer._layers:
                if isinstance(part, layers.Layer):
                    walk(part, f"{path}{part.name}/")
            return
        # Not `variables`: those of random numbers that are not drawn may go.
        for number, variable in enumerate(layer.weights):
            found[f"{path}{number}"] = variable.numpy()

    walk(model, "")
    # A scalar has become a table of one entry; a vector a table of one row.
    return {path: np.atleast_1d(value) for path, value in found.items()}
