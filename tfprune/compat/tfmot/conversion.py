"""From a model that tfmot has pruned in tf_keras to a Keras 3 model."""

import copy
import tempfile
from pathlib import Path

import keras
import numpy as np

_WRAPPER = "PruneLowMagnitude"


def from_tfmot(model):
    """Returns the Keras 3 model of a tf_keras model that tfmot has pruned.

    Wrappers are taken away and masks multiplied into the weights, so what was pruned is
    exactly zero. To train on with those zeros held, give the result's masks to
    `tfprune.apply_masks`.

    Args:
        model: a Functional or Sequential `tf_keras.Model`, with or without wrappers;
            not changed.

    Returns:
        A plain Keras 3 model, uncompiled.

    Raises:
        ValueError: if it is no such model, or Keras 3 cannot read one of its layers.
        ImportError: without tf_keras.

    Example:

    ```python
    with tensorflow_model_optimization.sparsity.keras.prune_scope():
        pruned = tf_keras.models.load_model("pruned.h5")
    model = from_tfmot(pruned)
    graph = tfprune.Graph(model, unit="weight")
    model = tfprune.apply_masks(graph, tfprune.read_masks(graph))
    ```
    """
    tf_keras = _tf_keras()
    if not isinstance(model, tf_keras.Model):
        raise ValueError(
            "`model` must be a model of tf_keras (Keras 2). Received: "
            f"{type(model)}. A Keras 3 model needs no conversion."
        )
    try:
        config = model.get_config()
    except NotImplementedError as error:
        raise ValueError(
            "`model` must be Functional or Sequential. Received: "
            f"{model.name!r} (of type {type(model).__name__})"
        ) from error
    plain = type(model).from_config(_unwrapped(copy.deepcopy(config)))
    plain.set_weights([value for layer in model.layers for value in _values(layer)])
    return _through_file(plain)


def _tf_keras():
    try:
        import tf_keras
    except ModuleNotFoundError as error:
        raise ImportError(
            "`from_tfmot` needs tf_keras, in which tfmot prunes. Install it with: "
            "pip install tf_keras"
        ) from error
    return tf_keras


def _unwrapped(config):
    """Returns a config with the layers inside in the place of wrappers."""
    names: dict[str, str] = {}
    plain = _without_wrappers(config, names)
    return _renamed(plain, names)


def _without_wrappers(config, names: dict):
    """Takes wrappers away; notes under `names` what their layers are called."""
    if isinstance(config, list):
        return [_without_wrappers(each, names) for each in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == _WRAPPER:
        own = config["config"]
        inner = _without_wrappers(own["layer"], names)
        names[own["name"]] = inner["config"]["name"]
        if "batch_input_shape" in own:
            inner["config"].setdefault("batch_input_shape", own["batch_input_shape"])
        return {**config, **inner, "name": own["name"]}
    return {key: _without_wrappers(value, names) for key, value in config.items()}


def _renamed(config, names: dict):
    if isinstance(config, (list, tuple)):
        return type(config)(_renamed(each, names) for each in config)
    if isinstance(config, dict):
        return {key: _renamed(value, names) for key, value in config.items()}
    return names.get(config, config) if isinstance(config, str) else config


def _values(layer) -> list[np.ndarray]:
    """Returns the weights of a layer, masked, without those of its wrapper."""
    if type(layer).__name__ != _WRAPPER:
        if hasattr(layer, "layers"):
            return [value for each in layer.layers for value in _values(each)]
        return layer.get_weights()
    masks = {id(weight): mask for weight, mask, _ in layer.pruning_vars}
    return [
        weight.numpy() * masks[id(weight)].numpy()
        if id(weight) in masks
        else weight.numpy()
        for weight in layer.layer.weights
    ]


def _through_file(plain):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "plain.h5")
        plain.save(path, include_optimizer=False)
        try:
            return keras.models.load_model(path, compile=False)
        except Exception as error:
            raise ValueError(
                f"Keras 3 cannot read {plain.name!r}, which is a model of tf_keras "
                f"without wrappers now. {error}"
            ) from error
