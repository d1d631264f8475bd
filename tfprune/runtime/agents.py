"""Agents that say, layer by layer, which fraction of the channels stays."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tfprune.runtime.ppo import Rollout, log_probability

_UNITS = 128
# A standard deviation of 0.018: ratios move little from what the mean says.
_LOG_DEVIATION = -4.0


@keras.saving.register_keras_serializable("tfprune")
class Agent(keras.layers.Layer):
    """A recurrent network that walks through the layers of another.

    At each layer an encoder of its own reads the state, the recurrent cell takes the
    code in, and three heads say the mean of the ratio, its log standard deviation and
    the value. At first every mean is the budget.

    Args:
        state_sizes: list of ints: how many numbers the state of each layer has.
        budget: float: the ratio to begin with.
        cell: `"rnn"`, for states of images, or `"lstm"`, for states that are the same
            for all.
        reads_budget: whether the cell reads the budget beside the code. Defaults to
            True for `"rnn"`.
        limits: two floats: executed ratios are clipped to these.

    Source: Chen et al., "Storage efficient and dynamic flexible runtime channel pruning
    via deep reinforcement learning", 2020, author response.
    """

    def __init__(
        self,
        state_sizes,
        budget,
        cell="rnn",
        reads_budget=None,
        limits=(0.1, 1.0),
        **kwargs,
    ):
        super().__init__(**kwargs)
        if cell not in ("rnn", "lstm"):
            raise ValueError(f'`cell` must be "rnn" or "lstm". Received: cell={cell!r}')
        self.state_sizes, self.budget = list(state_sizes), float(budget)
        self.cell_type, self.limits = cell, tuple(limits)
        self.reads_budget = cell == "rnn" if reads_budget is None else reads_budget
        encoders = [layers.Dense(_UNITS, "relu") for _ in self.state_sizes]
        self.encoders = encoders if cell == "rnn" else encoders[:1]
        cells = {"rnn": layers.SimpleRNNCell, "lstm": layers.LSTMCell}
        self.cell = cells[cell](_UNITS)
        small = keras.initializers.VarianceScaling(0.04, "fan_avg", "uniform")
        self.mean = layers.Dense(1, kernel_initializer=small)
        deviation = keras.initializers.Constant(_LOG_DEVIATION)
        self.log_deviation = layers.Dense(1, bias_initializer=deviation)
        self.value = layers.Dense(1)
        self._build_parts()
        self.compiled = tf.function(self.call, reduce_retracing=True)

    def _build_parts(self):
        for encoder, size in zip(self.encoders, self.state_sizes, strict=False):
            encoder.build((None, size))
        self.cell.build((None, _UNITS + self.reads_budget))
        for head in (self.mean, self.log_deviation, self.value):
            head.build((None, _UNITS))
        self.built = True

    def begin(self, samples):
        """Returns the cell's state before the first layer."""
        count = 2 if self.cell_type == "lstm" else 1
        return [ops.zeros((samples, _UNITS)) for _ in range(count)]

    def step(self, number: int, state, hidden):
        """Returns `((mean, log deviation, value), hidden)` at a layer.

        Args:
            number: int: which layer.
            state: float32 tensor of shape `(samples, state_sizes[number])`.
            hidden: what the last step returned, or `begin`.
        """
        encoder = self.encoders[number if len(self.encoders) > 1 else 0]
        code = encoder(state)
        if self.reads_budget:
            budget = ops.full_like(code[:, :1], self.budget)
            code = ops.concatenate([code, budget], axis=-1)
        output, hidden = self.cell(code, hidden)
        mean = self.mean(output)[:, 0] + self.budget
        return (
            mean,
            self.log_deviation(output)[:, 0],
            self.value(output)[:, 0],
        ), hidden

    def call(self, states):
        """Returns means, log deviations and values, each `(samples, steps)`.

        Args:
            states: list with a float32 tensor of shape `(samples, size)` per layer.
        """
        hidden, found = self.begin(ops.shape(states[0])[0]), []
        for number, state in enumerate(states):
            heads, hidden = self.step(number, state, hidden)
            found.append(heads)
        return tuple(ops.stack(each, axis=1) for each in zip(*found, strict=True))

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image of what says the ratios of all layers."""
        gates = 4 if self.cell_type == "lstm" else 1
        cell = gates * _UNITS * (2 * _UNITS + self.reads_budget)
        return sum(size * _UNITS + cell + _UNITS for size in self.state_sizes)

    def clipped(self, actions):
        """Returns the ratios that are carried out."""
        return ops.clip(actions, *self.limits)

    def get_config(self):
        return {
            **super().get_config(),
            "state_sizes": self.state_sizes,
            "budget": self.budget,
            "cell": self.cell_type,
            "reads_budget": self.reads_budget,
            "limits": list(self.limits),
        }


def act(agent: Agent, states, generator=None) -> Rollout:
    """Returns a `Rollout`: what an agent does in states that are known beforehand.

    Args:
        agent: the `Agent`.
        states: list with a float array of shape `(samples, size)` per layer.
        generator: `tf.random.Generator` that draws the actions; None takes the means.
    """
    states = [np.asarray(state, np.float32) for state in states]
    means, log_deviations, values = agent.compiled(list(map(tf.constant, states)))
    actions = means
    if generator is not None:
        noise = generator.normal(means.shape)
        actions = means + tf.exp(log_deviations) * noise
    logs = log_probability(actions, means, log_deviations)
    return Rollout(states, actions.numpy(), logs.numpy(), values.numpy())
