"""Proximal policy optimization: how an agent learns from what it did."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf


def advantages(rewards, values, discount=0.999, trace=0.95):
    """Returns generalized advantages and discounted returns.

    Args:
        rewards: float array of shape `(samples, steps)`.
        values: float array of the same shape: the critic's estimates; 0 after the end.
        discount: float, gamma.
        trace: float, lambda.

    Returns:
        Two float32 arrays of shape `(samples, steps)`.

    Source: Schulman et al., "High-dimensional continuous control using generalized
    advantage estimation", 2016, equation 16.
    """
    rewards, values = np.asarray(rewards, np.float64), np.asarray(values, np.float64)
    later = np.concatenate([values[:, 1:], np.zeros((len(values), 1))], axis=1)
    errors = rewards + discount * later - values
    return (
        _summed(errors, discount * trace).astype(np.float32),
        _summed(rewards, discount).astype(np.float32),
    )


def _summed(numbers: np.ndarray, factor: float) -> np.ndarray:
    """Returns at each step the sum of it and all that follow, each times `factor`."""
    total, sums = 0.0, np.empty_like(numbers)
    for step in reversed(range(numbers.shape[1])):
        total = sums[:, step] = numbers[:, step] + factor * total
    return sums


def log_probability(actions, means, log_deviations):
    """Returns the log of the density of actions under normal distributions."""
    distances = (actions - means) * tf.exp(-log_deviations)
    return (
        -0.5 * tf.square(distances)
        - log_deviations
        - 0.5 * np.float32(np.log(2 * np.pi))
    )


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What an agent saw and did, for a batch of samples.

    Attributes:
        states: list with a float32 array of shape `(samples, size)` for each step.
        actions: float32 array of shape `(samples, steps)`, as drawn, not clipped.
        log_probabilities: of the actions when they were drawn, the same shape.
        values: the critic's estimates then, the same shape.
    """

    states: list
    actions: np.ndarray
    log_probabilities: np.ndarray
    values: np.ndarray


def rollout_of(states, actions, heads) -> Rollout:
    """Returns the `Rollout` of an agent that acted.

    Args:
        states: list with a float array of shape `(samples, size)` per layer.
        actions: float array of shape `(samples, layers)`, as drawn.
        heads: what the agent's heads say in these states.
    """
    means, log_deviations, values = heads
    logs = log_probability(actions, means, log_deviations)
    return Rollout(states, np.asarray(actions), logs.numpy(), np.asarray(values))


def new_optimizer(agent, learning_rate=1e-6):
    """Returns an optimizer that is built for the weights of an agent."""
    optimizer = keras.optimizers.Adam(learning_rate, global_clipnorm=0.5)
    optimizer.build(agent.weights)
    return optimizer


class PPO:
    """Trains an agent on its rollouts.

    Args:
        agent: the `Agent`.
        optimizer: Keras optimizer, by default Adam at the paper's rate of 1e-6.
        outside: float. How hard means are pulled back that lie outside of where ratios
            are clipped: 100 for the agent of images, 1e-3 for the static one.
        clip: float. How far the probability of an action may move.
        minibatch: int. Samples in a step of the optimizer.
        seed: int.

    Source: Schulman et al., "Proximal policy optimization algorithms", 2017, equation
    7; the weights of the terms are those of Chen et al., 2020.
    """

    def __init__(
        self, agent, optimizer=None, outside=100.0, clip=0.2, minibatch=64, seed=0
    ):
        self.agent, self._outside, self._clip = agent, outside, clip
        self._minibatch, self.random = minibatch, np.random.default_rng(seed)
        self.optimizer = optimizer or new_optimizer(agent)
        self._step = tf.function(self._train, reduce_retracing=True)

    def learn(self, rollout: Rollout, rewards, epochs: int = 1) -> dict:
        """Makes one pass, or several, over a rollout; returns means of the losses.

        Args:
            rollout: `Rollout`.
            rewards: float array of shape `(samples, steps)`.
            epochs: int.
        """
        better, returns = advantages(rewards, rollout.values)
        arrays = [rollout.actions, rollout.log_probabilities, rollout.values]
        arrays = [np.float32(each) for each in (*arrays, better, returns)]
        found = []
        for _ in range(epochs):
            order = self.random.permutation(len(rewards))
            for start in range(0, len(order), self._minibatch):
                rows = order[start : start + self._minibatch]
                states = [np.float32(state)[rows] for state in rollout.states]
                found.append(self._step(states, *(each[rows] for each in arrays)))
        return {
            name: float(np.mean([losses[name] for losses in found]))
            for name in found[0]
        }

    def losses(self, states, actions, old, old_values, better, returns) -> dict:
        """Returns the terms of the loss, and the largest change of a probability."""
        means, log_deviations, values = self.agent(states)
        ratio = tf.exp(log_probability(actions, means, log_deviations) - old)
        better = (better - tf.reduce_mean(better)) / (tf.math.reduce_std(better) + 1e-8)
        near = tf.clip_by_value(ratio, 1 - self._clip, 1 + self._clip)
        moved = tf.clip_by_value(values - old_values, -self._clip, self._clip)
        errors = [tf.square(each - returns) for each in (values, old_values + moved)]
        inside = tf.stop_gradient(tf.clip_by_value(means, *self.agent.limits))
        return {
            "policy": tf.reduce_mean(tf.maximum(-better * ratio, -better * near)),
            "value": 0.5 * tf.reduce_mean(tf.maximum(*errors)),
            "outside": tf.reduce_mean(_smooth_l1(means - inside)),
            "change": tf.reduce_max(tf.abs(ratio - 1)),
        }

    def _train(self, states, *arrays):
        variables = self.agent.weights
        with tf.GradientTape() as tape:
            # `fit` does not train them, so no tape watches them by itself.
            tape.watch([variable.value for variable in variables])
            terms = self.losses(states, *arrays)
            loss = terms["policy"] + 0.5 * terms["value"]
            loss += self._outside * terms["outside"]
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        self.optimizer.apply(gradients, variables)
        return terms


def _smooth_l1(errors):
    sizes = tf.abs(errors)
    return tf.where(sizes < 1, 0.5 * tf.square(errors), sizes - 0.5)
