"""Agents that say, layer by layer, which fraction of the channels stays."""

import abc

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tfprune.runtime.ppo import Rollout, log_probability

_UNITS = 128
# A standard deviation of 0.018: ratios move little from what the mean says.
_LOG_DEVIATION = -4.0


class Walker(keras.layers.Layer):
    """Base of agents: a recurrent network that walks through the layers of another.

    At each layer an encoder of its own reads the state, the recurrent cell takes the
    code in, and heads say what comes of it.

    Args:
        state_sizes: list of ints: how many numbers the state of each layer has.
        cell: `"rnn"`, for states of images, or `"lstm"`, for states that are the same
            for all, which one encoder reads.
        extra: int: how many numbers the cell reads beside the code.
    """

    def __init__(self, state_sizes, cell="rnn", extra=0, **kwargs):
        super().__init__(**kwargs)
        if cell not in ("rnn", "lstm"):
            raise ValueError(f'`cell` must be "rnn" or "lstm". Received: cell={cell!r}')
        self.state_sizes, self.cell_type = list(state_sizes), cell
        encoders = [layers.Dense(_UNITS, "relu") for _ in self.state_sizes]
        self.encoders = encoders if cell == "rnn" else encoders[:1]
        cells = {"rnn": layers.SimpleRNNCell, "lstm": layers.LSTMCell}
        self.cell = cells[cell](_UNITS)
        for encoder, size in zip(self.encoders, self.state_sizes, strict=False):
            encoder.build((None, size))
        self.cell.build((None, _UNITS + extra))
        self.extra = extra
        self.compiled = tf.function(self.call, reduce_retracing=True)

    @abc.abstractmethod
    def heads(self, output) -> tuple:
        """Returns what is said at a layer, given the cell's output there."""

    def read(self, code):
        """Returns what the cell reads of an encoder's code."""
        return code

    def begin(self, samples):
        """Returns the cell's state before the first layer."""
        count = 2 if self.cell_type == "lstm" else 1
        return [ops.zeros((samples, _UNITS)) for _ in range(count)]

    def step(self, number: int, state, hidden):
        """Returns `(what the heads say, hidden)` at a layer.

        Args:
            number: int: which layer.
            state: float32 tensor of shape `(samples, state_sizes[number])`.
            hidden: what the last step returned, or `begin`.
        """
        encoder = self.encoders[number if len(self.encoders) > 1 else 0]
        output, hidden = self.cell(self.read(encoder(state)), hidden)
        return self.heads(output), hidden

    def call(self, states):
        """Returns what the heads say at all layers, each `(samples, steps, ...)`.

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
        """Multiply-accumulates of a walk for one image that says one number a layer."""
        gates = 4 if self.cell_type == "lstm" else 1
        cell = gates * _UNITS * (2 * _UNITS + self.extra)
        return sum(size * _UNITS + cell + _UNITS for size in self.state_sizes)

    def get_config(self):
        return {
            **super().get_config(),
            "state_sizes": self.state_sizes,
            "cell": self.cell_type,
        }


@keras.saving.register_keras_serializable("tfprune")
class Agent(Walker):
    """Says which fraction of each layer's channels stays, as a normal distribution.

    Three heads say the mean of the ratio, its log standard deviation and the value. At
    first every mean is the budget.

    Args:
        state_sizes: list of ints: how many numbers the state of each layer has.
        budget: float: the ratio to begin with.
        cell: `"rnn"` or `"lstm"`, see `Walker`. An agent with `"rnn"` reads the budget
            at every layer.
        limits: two floats: executed ratios are clipped to these.

    Source: Chen et al., "Storage efficient and dynamic flexible runtime channel pruning
    via deep reinforcement learning", 2020, author response.
    """

    def __init__(self, state_sizes, budget, cell="rnn", limits=(0.1, 1.0), **kwargs):
        super().__init__(state_sizes, cell, extra=int(cell == "rnn"), **kwargs)
        self.budget, self.limits = float(budget), tuple(limits)
        small = keras.initializers.VarianceScaling(0.04, "fan_avg", "uniform")
        self.mean = layers.Dense(1, kernel_initializer=small)
        deviation = keras.initializers.Constant(_LOG_DEVIATION)
        self.log_deviation = layers.Dense(1, bias_initializer=deviation)
        self.value = layers.Dense(1)
        for head in (self.mean, self.log_deviation, self.value):
            head.build((None, _UNITS))
        self.built = True

    def read(self, code):
        if not self.extra:
            return code
        budget = ops.full_like(code[:, :1], self.budget)
        return ops.concatenate([code, budget], axis=-1)

    def heads(self, output):
        mean = self.mean(output)[:, 0] + self.budget
        return mean, self.log_deviation(output)[:, 0], self.value(output)[:, 0]

    def clipped(self, actions):
        """Returns the ratios that are carried out."""
        return ops.clip(actions, *self.limits)

    def get_config(self):
        config = {"budget": self.budget, "limits": list(self.limits)}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable("tfprune")
class GroupAgent(Walker):
    """Says what it is worth to compute the first one, two, ... groups of channels.

    Args:
        state_sizes: list of ints: how many numbers the state of each layer has.
        groups: int: groups of each layer. The last action computes all of it.

    Source: Lin et al., "Runtime neural pruning", 2017.
    """

    def __init__(self, state_sizes, groups=4, cell="rnn", **kwargs):
        super().__init__(state_sizes, cell, **kwargs)
        self.groups = groups
        self.worth = layers.Dense(groups)
        self.worth.build((None, _UNITS))
        self.built = True

    def heads(self, output):
        return (self.worth(output),)

    def get_config(self):
        return {**super().get_config(), "groups": self.groups}


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
