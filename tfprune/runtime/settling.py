"""The static part of gates: what it is scored by, and when it is chosen for good."""

import numpy as np
import tensorflow as tf

from tfprune.importances import GeometricMedian
from tfprune.layers.runtime_masks import (
    block_means,
    deployed_ratios,
    kept,
    spread,
    top_mask,
)
from tfprune.losses import at_best_scale, loss_of, unscaled
from tfprune.runtime.gates import gated_nodes


def update_features(model, gates, batch) -> None:
    """Tells static parts how far filters are from others, their norms and gradients.

    Args:
        model: compiled model.
        gates: its gates with a static part.
        batch: `(x, y)`, on whose loss the gradients are taken.

    Source: Chen et al., "Storage efficient and dynamic flexible runtime channel pruning
    via deep reinforcement learning", 2020, code; all three are of the weights as they
    are, where the authors read two of them from a file.
    """
    kernel_of = {
        node.operation.name: before[-1].operation.kernel
        for node, before in gated_nodes(model)
    }
    kernels = [kernel_of[gate.name] for gate in gates]
    values = [kernel.value for kernel in kernels]

    def gradients_of(scale, x, y):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss = loss_of(model, x, y, model(x, training=False))
            loss *= tf.cast(scale, loss.dtype)
        return [unscaled(g, scale) for g in tape.gradient(loss, values)]

    gradients = at_best_scale(model, gradients_of)(*batch)
    for gate, kernel, gradient in zip(gates, kernels, gradients, strict=True):
        filters = kernel.numpy().reshape(-1, gate.channels).T
        changes = (filters * gradient.numpy().reshape(-1, gate.channels).T) ** 2
        features = [
            GeometricMedian(normalize=False).of_filters(filters),
            np.linalg.norm(filters, axis=1),
            changes.sum(axis=1),
        ]
        scaled = [each / (np.linalg.norm(each) + 1e-3) for each in features]
        gate.features.assign(np.stack(scaled, axis=-1))


def settle(gates) -> None:
    """Chooses what is stored for all images, by the static agent and scores.

    From then on each image keeps the best of what is stored, as many in all as before.

    Args:
        gates: the gates with a static part, in the order in which they decide.
    """
    policy = gates[0].policy
    hidden = policy.static_agent.begin(1)
    for gate in gates:
        width = tf.fill((1, 1), policy.widths[gate.number])
        heads, hidden = policy.static_agent.step(gate.number, width, hidden)
        ratio = float(policy.static_agent.act(heads)[1][0])
        stored, _ = deployed_ratios(1.0, ratio, gate.runtime_ratio)
        scores = block_means(gate.static_scores(), gate.block)
        blocks = top_mask(scores, kept(tf.constant(stored), gate.units))
        gate.stored.assign(spread(blocks, gate.channels, gate.block))
        gate.static_keep.assign(ratio)
    policy.settled.assign(True)
