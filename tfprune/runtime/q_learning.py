"""Q-learning: how an agent learns what each choice is worth."""

import numpy as np
import tensorflow as tf

from tfprune.runtime.ppo import new_optimizer


def rewards_of(actions, losses, penalty: float, weight: float) -> np.ndarray:
    """Returns what choices earn: a penalty for each group, and the loss at the end.

    Args:
        actions: int array of shape `(samples, steps)`.
        losses: float array of shape `(samples,)`.
        penalty: float below 0, for each group computed beyond the first.
        weight: float: what a unit of the loss costs.
    """
    rewards = penalty * np.asarray(actions, np.float32)
    rewards[:, -1] -= weight * np.asarray(losses, np.float32)
    return rewards


class QLearning:
    """Trains an agent on what it did.

    Args:
        agent: the `GroupAgent`.
        optimizer: Keras optimizer, by default Adam.
        discount: float, gamma.

    Source: Watkins and Dayan, "Q-learning", 1992; Lin et al., "Runtime neural pruning",
    2017.
    """

    def __init__(self, agent, optimizer=None, discount=1.0):
        self.agent, self.discount = agent, discount
        self.optimizer = optimizer or new_optimizer(agent, 1e-3)
        self._step = tf.function(self._train, reduce_retracing=True)

    def learn(self, states, actions, rewards) -> float:
        """Makes one step on a batch of walks; returns the loss.

        Args:
            states: list with a float array of shape `(samples, size)` per layer.
            actions: int array of shape `(samples, steps)`.
            rewards: float array of the same shape.
        """
        states = [tf.constant(np.float32(each)) for each in states]
        return float(self._step(states, np.int32(actions), np.float32(rewards)))

    def _train(self, states, actions, rewards):
        variables = self.agent.weights
        with tf.GradientTape() as tape:
            tape.watch([variable.value for variable in variables])
            (worth,) = self.agent(states)
            later = tf.stop_gradient(tf.reduce_max(worth[:, 1:], axis=-1))
            later = tf.pad(later, [[0, 0], [0, 1]])
            chosen = tf.gather(worth, actions, axis=-1, batch_dims=2)
            errors = chosen - (rewards + self.discount * later)
            loss = tf.reduce_mean(tf.square(errors))
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        self.optimizer.apply(gradients, variables)
        return loss
