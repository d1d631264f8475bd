"""Networks with runtime gates whose predictions depend on the image."""

import keras
import numpy as np
from keras import layers

import tfprune
from tfprune.layers import RuntimeGate

# Every kind of gate, and the mode that skips what it closes.
KINDS = {
    "suppression": ({"agent": None, "keep_ratio": 0.5}, "block"),
    "blocks": ({"agent": None, "keep_ratio": 0.5, "block": 4}, "block"),
    "rectified": ({"rectify": True, "keep_ratio": 0.5, "block": 3}, "block"),
    "agent": ({"keep_ratio": 0.6, "block": 4}, "block"),
    "both": ({"keep_ratio": 0.5, "runtime_ratio": 0.5, "block": 4}, "block"),
    "static": ({"keep_ratio": 0.5, "runtime_ratio": 0.0}, "block"),
    "first": ({"agent": None, "keep_ratio": 0.5, "selection": "prefix"}, "prefix"),
    "groups": ({"agent": "groups", "selection": "prefix"}, "prefix"),
    "network": (
        {"per_network": True, "selection": "prefix", "keep_ratio": 0.6},
        "prefix",
    ),
    "widths": (
        {"per_network": True, "selection": "prefix", "agent": "groups"},
        "bucket",
    ),
}


def small_network(residual=False):
    """Three convolutions; with `residual` the inner one's channels are its own."""
    x = inputs = layers.Input((12, 12, 3))
    for number, width in enumerate((10, 14, 11)):
        x = layers.Conv2D(width, 3, padding="same", use_bias=number == 1)(x)
        if number < 2:
            x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
        if number == 1:
            x = layers.MaxPooling2D()(x)
    if residual:
        inner = layers.Conv2D(9, 3, padding="same", name="inner")(x)
        inner = layers.ReLU()(layers.BatchNormalization()(inner))
        x = layers.Add()([x, layers.Conv2D(11, 3, padding="same", name="last")(inner)])
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(5)(x))


def gates_in(model) -> list:
    return [each for each in model.layers if isinstance(each, RuntimeGate)]


def gated(model, seed=0, **arguments):
    """Returns a model with gates that have learned something."""
    random = np.random.default_rng(seed)
    new = tfprune.prune_wrap(model, RuntimeGate, **arguments)
    for gate in gates_in(new):
        if gate.predicts:
            gate.phi.assign(random.normal(0, 0.3, gate.phi.shape))
        else:
            gate.order.assign(random.permutation(gate.channels))
        if gate.has_static_part:
            gate.trait.assign(random.normal(size=gate.channels))
            gate.static_keep.assign(0.7)
            gate.policy.settled.assign(True)
            for layer in gate.policy.importance.layers:
                layer.kernel.assign(random.normal(0, 0.3, layer.kernel.shape))
        if gate.policy is not None:
            for agent in gate.policy.agents:
                for weight in agent.weights:
                    weight.assign(weight + random.normal(0, 0.05, weight.shape))
    policy = gates_in(new)[0].policy
    if policy is not None and policy.agent_type == "gaussian":
        for agent in policy.agents:
            # So that ratios depend on images, and are seldom clipped.
            agent.mean.kernel.assign(0.3 * agent.mean.kernel)
    return new


def store_some(model, seed=0):
    """Leaves two thirds of the blocks of every gate stored."""
    random = np.random.default_rng(seed)
    for gate in gates_in(model):
        blocks = random.random(gate.units) < 0.67
        blocks[0] = True
        gate.stored.assign(np.repeat(blocks, gate.block)[: gate.channels])
    return model


def images(count=5, shape=(12, 12, 3), seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")
